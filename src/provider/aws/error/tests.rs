use super::*;

#[test]
fn every_code_has_its_class() {
    use ErrorClass::{Denied, Gone, Invalid, NoCapacity, Quota, Refused, Retry};
    let table = [
        (Retry, "RequestLimitExceeded Throttling ThrottlingException TooManyRequestsException InternalError"),
        (Retry, "Unavailable ServiceUnavailable InternalFailure RequestTimeout ServiceException"),
        (Retry, "EC2InstanceUnavailableException SnapshotCreationPerVolumeRateExceeded"),
        (
            NoCapacity,
            "InsufficientInstanceCapacity Server.InsufficientInstanceCapacity UnfulfillableCapacity",
        ),
        (NoCapacity, "InsufficientHostCapacity InsufficientVolumeCapacity InsufficientFreeAddressesInSubnet"),
        (Gone, "InvalidInstanceID.NotFound InvalidVolume.NotFound InvalidSnapshot.NotFound"),
        (Gone, "InvalidAttachment.NotFound EC2InstanceNotFoundException InvalidID"),
        (
            Refused,
            "IncorrectInstanceState IncorrectState VolumeInUse InvalidSnapshot.InUse ResourceContention",
        ),
        (Refused, "ScalingActivityInProgress EC2InstanceStateInvalidException ResourceInUse"),
        (Refused, "UnsupportedHibernationConfiguration"),
        (Denied, "AuthFailure UnauthorizedOperation AccessDenied AccessDeniedException ExpiredToken"),
        (Denied, "RequestExpired InvalidClientTokenId OptInRequired SignatureDoesNotMatch AuthException"),
        (Denied, "UnrecognizedClientException PendingVerification"),
        (Quota, "VcpuLimitExceeded VolumeLimitExceeded SnapshotLimitExceeded InstanceLimitExceeded"),
        (Quota, "MaxSpotInstanceCountExceeded TagLimitExceeded LimitExceeded MaxIOPSLimitExceeded"),
        (Quota, "Client.VolumeLimitExceeded"),
        // Wrong in the spec, in the group's template, or beyond what the type can do.
        (
            Invalid,
            "InvalidParameterValue InvalidInstanceID.Malformed InvalidAMIID.NotFound InvalidKeyPair.NotFound",
        ),
        (Invalid, "InvalidVolume.ZoneMismatch OperationNotPermitted"),
        (Invalid, "IdempotentParameterMismatch InvalidLaunchTemplateId.NotFound Client.InternalError"),
        (Invalid, "InvalidArgsException InvalidKmsKey.InvalidState SomethingNew"),
    ];
    for (class, codes) in table {
        for code in codes.split(' ') {
            assert_eq!(classify(code, "", Some(400)), class, "{code}");
        }
    }
}

#[test]
fn what_one_code_says_of_many_things_is_told_by_its_words() {
    let cases = [
        (ErrorClass::Refused, "The instance i-1 is not in InService or EnteringStandby or Standby."),
        (ErrorClass::Refused, "The instance i-1 is in Terminating:Wait state."),
        (ErrorClass::Refused, "The instance i-1 is in a warm pool; this operation cannot be called on it."),
        (ErrorClass::Gone, "Instance Id not found - No managed instance found for instance ID: i-1"),
        (ErrorClass::Gone, "The instance i-1 is not part of Auto Scaling group g."),
        (ErrorClass::Gone, "No active Lifecycle Action found with instance ID i-1"),
        (ErrorClass::Gone, "AutoScalingGroup name not found - AutoScalingGroup 'g' not found"),
        (
            ErrorClass::Invalid,
            "New SetDesiredCapacity value 50 is above max value 6 for the AutoScalingGroup.",
        ),
        (
            ErrorClass::Invalid,
            "Terminating instance without replacement will violate group's min size constraint.",
        ),
        (ErrorClass::Invalid, "The specified launch template lt-1 was not found"),
        (
            ErrorClass::NoCapacity,
            "Could not launch instances. InsufficientInstanceCapacity - none in this zone",
        ),
        (ErrorClass::Quota, "VcpuLimitExceeded: you have requested more vCPU capacity than your limit"),
    ];
    for (class, message) in cases {
        assert_eq!(classify("ValidationError", message, Some(400)), class, "{message}");
    }
    let in_use = "Invalid value '/dev/sdf' for unixDevice. Attachment point /dev/sdf is already in use";
    assert_eq!(classify("InvalidParameterValue", in_use, Some(400)), ErrorClass::Refused);
    let elsewhere =
        "Your requested instance type (x) is not supported in your requested Availability Zone (y).";
    assert_eq!(classify("Unsupported", elsewhere, Some(400)), ErrorClass::NoCapacity);
}

#[test]
fn a_code_that_is_not_known_is_judged_by_the_status() {
    assert_eq!(classify("HTTP 502", "", Some(502)), ErrorClass::Retry);
    assert_eq!(classify("HTTP 403", "", Some(403)), ErrorClass::Denied);
    assert_eq!(classify("HTTP 429", "", Some(429)), ErrorClass::Retry);
    assert_eq!(classify("Odd", "", Some(400)), ErrorClass::Invalid);
    assert_eq!(classify("Odd", "", None), ErrorClass::Invalid);
}

#[test]
fn messages_are_short_and_hold_nothing_that_was_signed() {
    let denied =
        "You are not authorized to perform: ec2:StopInstances. Encoded authorization failure message: AbCdEf";
    assert_eq!(shorten(denied), "You are not authorized to perform: ec2:StopInstances.");
    let mismatch = "The request signature we calculated does not match.\n\nThe Canonical String for this request \
                    should have been 'POST\nx-amz-security-token:hunter2'";
    assert_eq!(shorten(mismatch), "The request signature we calculated does not match.");
    let address =
        "error sending request for url (https://ec2.example.com/?X-Amz-Signature=hunter2&a=b): refused";
    let kept = shorten(address);
    assert!(kept.contains("https://ec2.example.com/") && !kept.contains("hunter2"), "{kept}");
    assert!(!shorten("see X-Amz-Security-Token=hunter2 there").contains("hunter2"));
    let long = shorten(&"ä".repeat(1000));
    assert_eq!(long.chars().count(), LONGEST_MESSAGE);
    assert_eq!(shorten("a\u{1b}[31m\tb\r\n c"), "a [31m b c");
}

#[test]
fn an_answer_that_never_came_is_tried_again() {
    use aws_sdk_ec2::operation::stop_instances::StopInstancesError;
    let timed_out: SdkError<StopInstancesError> = SdkError::timeout_error("late");
    let error = from_sdk("stop instance i-1", &timed_out);
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Retry, "TimedOut"));
    assert!(error.to_string().starts_with("failed to stop instance i-1: TimedOut"), "{error}");
    let built: SdkError<StopInstancesError> = SdkError::construction_failure("no such field");
    assert_eq!(from_sdk("stop", &built).class, ErrorClass::Invalid);
    let nothing: SdkError<StopInstancesError> =
        SdkError::construction_failure(CredentialsError::not_loaded("no providers in chain"));
    let error = from_sdk("stop", &nothing);
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Denied, "NoCredentials"));
    assert!(error.with_way_out().contains("spec.provider.aws.credentialsSecretRef"), "{error}");
    let slow: SdkError<StopInstancesError> = SdkError::construction_failure(
        CredentialsError::provider_timed_out(std::time::Duration::from_secs(1)),
    );
    assert_ne!(from_sdk("stop", &slow).code, "NoCredentials");
}
