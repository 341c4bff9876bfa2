#!/usr/bin/env bash
# Checks once, on a real account, what no stand-in for AWS can prove: what Auto Scaling, EC2 and EBS do and how long they take.
#
#   config/aws/check-account.sh --region eu-central-1 --template ci-linux --subnet subnet-0a1b2c3d --dry-run
#
# It makes a group of its own of one instance, from your launch template, and removes all it has made, also when it is
# interrupted. It says what that may cost and asks before it begins. It needs the AWS CLI, version 2, with credentials that
# may make and delete groups, instances, volumes and snapshots: yours, not the operator's. With --role-arn what the operator
# does is done by its role, so that the policy is tried and not only simulated.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: check-account.sh --region REGION --template NAME --subnet SUBNET [OPTION]...

  --region REGION          where
  --template NAME          launch template of the pool's group, by name
  --subnet SUBNET          where the instance is launched
  --login USER@ADDRESS     log in by EC2 Instance Connect as USER to the private or public ADDRESS of the instance
                           (such as ubuntu@private); without it boot ids and files are not compared
  --role-arn ARN           make the operator's calls by this role, which has config/aws/iam-policy.json and which you may
                           assume: its trust policy has to name you for as long as this takes
  --cluster-id ID          the cluster's id in the role's policy; needed with --role-arn
  --price-per-hour USD     price of the template's instance type, for the estimate (default 0.10)
  --root-gib GIB           size of its root volume, for the estimate (default 50)
  --dry-run                print the calls and make none
  --yes                    do not ask
TEXT
}

region='' template='' subnet='' login='' role_arn='' cluster='' price=0.10 root_gib=50 dry_run=no ask=yes
while (($# > 0)); do
  case $1 in
    --dry-run) dry_run=yes; shift; continue ;;
    --yes) ask=no; shift; continue ;;
    --help | -h) usage; exit 0 ;;
    --*) (($# > 1)) || { printf 'check-account: %s needs a value\n' "$1" >&2; exit 2; } ;;
  esac
  case $1 in
    --region) region=$2 ;;
    --template) template=$2 ;;
    --subnet) subnet=$2 ;;
    --login) login=$2 ;;
    --role-arn) role_arn=$2 ;;
    --cluster-id) cluster=$2 ;;
    --price-per-hour) price=$2 ;;
    --root-gib) root_gib=$2 ;;
    *) printf 'check-account: there is no option %s\n\n' "$1" >&2; usage >&2; exit 2 ;;
  esac
  shift 2
done
for required in region template subnet; do
  [[ -n ${!required} ]] || { printf 'check-account: --%s is missing\n\n' "$required" >&2; usage >&2; exit 2; }
done
[[ -z $role_arn || -n $cluster ]] ||
  { printf 'check-account: --role-arn needs --cluster-id: the policy of the role names a cluster\n' >&2; exit 2; }
[[ -z $login || $login == ?*@private || $login == ?*@public ]] ||
  { printf 'check-account: --login is %s; it is USER@private or USER@public\n' "$login" >&2; exit 2; }
for number in price root_gib; do
  [[ ${!number} =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
    { printf 'check-account: %s is no number\n' "${!number}" >&2; exit 2; }
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=dormouse-check-$(date +%s)-$$
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[[ -n $cluster ]] || cluster=$run
instance='' volume='' restored='' snapshot='' zone='' group_made=no
rows=() by_operator=no session=()

# --- how calls are made --------------------------------------------------------------------------------------------------

# Makes a call and prints its answer as text. Its error is in $work/error.
call() {
  if [[ $dry_run == yes ]]; then
    [[ $by_operator == no || -z $role_arn ]] || printf '  (as the role)' >&2
    printf '  aws --region %s' "$region" >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    return 0
  fi
  local who=()
  [[ $by_operator == no ]] || who=(${session[0]+"${session[@]}"})
  env ${who[0]+"${who[@]}"} aws --region "$region" --output text --no-cli-pager "$@" 2>"$work/error"
}

# as_operator COMMAND...: what it calls is called by the operator's role, where there is one.
as_operator() {
  local by_operator=yes
  "$@"
}

# Takes on the role, for an hour.
assume() {
  local id secret token
  read -r id secret token < <(call sts assume-role --role-arn "$role_arn" --role-session-name "$run" \
    --query 'Credentials.[AccessKeyId,SecretAccessKey,SessionToken]')
  [[ -n ${token:-} || $dry_run == yes ]] || return 1
  session=("AWS_ACCESS_KEY_ID=${id:-}" "AWS_SECRET_ACCESS_KEY=${secret:-}" "AWS_SESSION_TOKEN=${token:-}")
}

# The code of the last error, such as ValidationError.
error_code() {
  sed -n 's/.*An error occurred (\([A-Za-z.]*\)).*/\1/p' "$work/error" | head -n 1
}

# Says what a call brought: "done", or the error's code.
outcome() {
  if call "$@" >/dev/null; then printf 'done'; else printf 'refused: %s' "$(error_code)"; fi
}

now() { date +%s.%N; }

since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }

# wait_for WHAT SECONDS WANTED COMMAND...: until COMMAND prints WANTED, a pattern. Leaves what it printed last in $seen.
seen=''
wait_for() {
  local what=$1 limit=$2 wanted=$3 begun=$SECONDS
  shift 3
  if [[ $dry_run == yes ]]; then
    "$@" >/dev/null
    printf '  (again until %s, %s s at most)\n' "$what" "$limit" >&2
    seen=$wanted
    return 0
  fi
  while :; do
    seen=$("$@" || true)
    # shellcheck disable=SC2053 # wanted is a pattern
    [[ $seen == $wanted ]] && return 0
    if ((SECONDS - begun > limit)); then
      printf '  gave up after %s s waiting until %s: it is %s\n' "$limit" "$what" "${seen:-nothing}" >&2
      return 1
    fi
    sleep 1
  done
}

# row WHAT EXPECTED SEEN [TIME]: a line of the table.
row() {
  local verdict=different
  # shellcheck disable=SC2053 # expected is a pattern
  [[ $3 == $2 ]] && verdict=ok
  [[ $2 == '?' ]] && verdict=learnt
  [[ $3 == 'not checked'* ]] && verdict=-
  [[ $dry_run == yes ]] && verdict=-
  rows+=("$verdict|$1|$2|$3|${4:-}")
  [[ $dry_run == yes ]] || printf '  %-9s %s: %s %s\n' "$verdict" "$1" "$3" "${4:-}"
}

lifecycle() {
  call autoscaling describe-auto-scaling-instances --instance-ids "$instance" \
    --query 'AutoScalingInstances[0].LifecycleState'
}

protection() {
  call autoscaling describe-auto-scaling-instances --instance-ids "$instance" \
    --query 'AutoScalingInstances[0].ProtectedFromScaleIn'
}

instance_state() {
  call ec2 describe-instances --instance-ids "$instance" --query 'Reservations[0].Instances[0].State.Name'
}

volume_state() {
  call ec2 describe-volumes --volume-ids "$1" --query 'Volumes[0].[State,Attachments[0].State]' | tr '\t' ' '
}

# remote COMMAND: runs it on the instance, with a key that is there for a minute.
remote() {
  local user=${login%@*} field=PrivateIpAddress address
  [[ $login == *@public ]] && field=PublicIpAddress
  address=$(call ec2 describe-instances --instance-ids "$instance" --query "Reservations[0].Instances[0].$field")
  as_operator call ec2-instance-connect send-ssh-public-key --instance-id "$instance" --availability-zone "$zone" \
    --instance-os-user "$user" --ssh-public-key "file://$work/key.pub" >/dev/null
  if [[ $dry_run == yes ]]; then
    printf '  ssh %s@ADDRESS %q\n' "$user" "$1" >&2
    return 0
  fi
  ssh -n -i "$work/key" -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=accept-new \
    -o UserKnownHostsFile="$work/known_hosts" "$user@$address" "$1"
}

boot_id() { remote 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null; }

# --- what is made is removed ---------------------------------------------------------------------------------------------

cleaned=no
clean_up() {
  [[ $cleaned == no ]] || return 0
  cleaned=yes
  trap '' INT TERM
  if [[ $group_made == yes || $dry_run == yes ]]; then
    printf '\nremoving what was made\n'
    # What is retained cannot be removed by force, so that comes first.
    call autoscaling update-auto-scaling-group --auto-scaling-group-name "$run" --min-size 0 --desired-capacity 0 \
      --instance-lifecycle-policy 'RetentionTriggers={TerminateHookAbandon=terminate}' || true
    call autoscaling delete-lifecycle-hook --auto-scaling-group-name "$run" --lifecycle-hook-name "$run" || true
    call autoscaling delete-auto-scaling-group --auto-scaling-group-name "$run" --force-delete || true
  fi
  if [[ -n $instance ]]; then
    undo 'TerminateInstances' ec2 terminate-instances --instance-ids "$instance"
    wait_for 'the instance is gone' 600 'terminated' instance_state || true
  fi
  local id
  for id in $volume $restored; do
    undo 'DeleteVolume' ec2 delete-volume --volume-id "$id"
  done
  [[ -z $snapshot ]] || undo 'DeleteSnapshot' ec2 delete-snapshot --snapshot-id "$snapshot"
  if [[ $group_made == yes ]]; then
    wait_for 'the group is gone' 600 '' call autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$run" \
      --query 'AutoScalingGroups[].Status' || true
    local left
    left=$(leftovers)
    if [[ -n $left ]]; then
      printf 'LEFT OVER, with the tag Name=%s; remove it by hand:\n%s\n' "$run" "$left"
    else
      printf 'nothing is left\n'
    fi
  fi
  rm -rf "$work"
}

# undo WHAT CALL...: by the operator, and where that may not, by you.
undo() {
  local what=$1 result
  shift
  result=$(as_operator outcome "$@")
  row "$what" 'done' "$result"
  [[ $result == 'done' ]] || call "$@" >/dev/null || true
}

leftovers() {
  call autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$run" \
    --query 'AutoScalingGroups[].[AutoScalingGroupName,Status]' || true
  call ec2 describe-instances --filters "Name=tag:Name,Values=$run" \
    'Name=instance-state-name,Values=pending,running,stopping,stopped' \
    --query 'Reservations[].Instances[].InstanceId' || true
  call ec2 describe-volumes --filters "Name=tag:Name,Values=$run" --query 'Volumes[].VolumeId' || true
  call ec2 describe-snapshots --owner-ids self --filters "Name=tag:Name,Values=$run" \
    --query 'Snapshots[].SnapshotId' || true
}

# --- the steps -----------------------------------------------------------------------------------------------------------

make_group() {
  zone=$(call ec2 describe-subnets --subnet-ids "$subnet" --query 'Subnets[0].AvailabilityZone')
  [[ $dry_run == no ]] || zone=ZONE
  group_made=$([[ $dry_run == yes ]] && printf no || printf yes)
  call autoscaling create-auto-scaling-group --auto-scaling-group-name "$run" --min-size 0 --max-size 1 \
    --desired-capacity 0 --launch-template "LaunchTemplateName=$template,Version=\$Latest" \
    --vpc-zone-identifier "$subnet" --new-instances-protected-from-scale-in \
    --instance-lifecycle-policy 'RetentionTriggers={TerminateHookAbandon=retain}' \
    --lifecycle-hook-specification-list \
    "LifecycleHookName=$run,LifecycleTransition=autoscaling:EC2_INSTANCE_TERMINATING,HeartbeatTimeout=900,DefaultResult=ABANDON" \
    --tags "Key=Name,Value=$run,PropagateAtLaunch=true" \
    "Key=dormouse.dev/cluster,Value=$cluster,PropagateAtLaunch=true" || return 1
  local tag="ResourceId=$run,ResourceType=auto-scaling-group,Key=dormouse.dev/pool,Value=check,PropagateAtLaunch=false"
  row 'claim the group by a tag' 'done' "$(as_operator outcome autoscaling create-or-update-tags --tags "$tag")"
  row 'give it up' 'done' "$(as_operator outcome autoscaling delete-tags --tags "$tag")"
}

# Asks for one instance, and prints its id, or the code of what is in the way.
launch_one() {
  local answer id code
  answer=$(as_operator call autoscaling launch-instances --auto-scaling-group-name "$run" --requested-capacity 1 \
    --availability-zones "$zone" --client-token "$run" \
    --query '[Instances[0].InstanceIds[0], Errors[0].ErrorCode]') || answer="None $(error_code)"
  read -r id code <<<"$answer"
  if [[ $id == i-* ]]; then printf '%s' "$id"; else printf '%s' "$code"; fi
}

launch() {
  local begun first
  begun=$(now)
  instance=$(launch_one)
  [[ $dry_run == no ]] || instance=i-INSTANCE
  row 'LaunchInstances names the instance' 'i-*' "$instance" "$(since "$begun")"
  if [[ $instance == i-* ]]; then
    row 'the same client token launches no second one' "$instance" "$(launch_one)"
  else
    # It is not allowed, perhaps: pools can do without.
    as_operator call autoscaling set-desired-capacity --auto-scaling-group-name "$run" --desired-capacity 1
    wait_for 'the group has a member' 300 'i-*' call autoscaling describe-auto-scaling-groups \
      --auto-scaling-group-names "$run" --query 'AutoScalingGroups[0].Instances[0].InstanceId' || {
      instance=''
      return 1
    }
    instance=$seen
  fi
  begun=$(now)
  wait_for 'EC2 shows the instance' 120 '[a-z]*' instance_state || true
  row 'DescribeInstances shows it' '?' 'shown' "$(since "$begun")"
  wait_for 'the group shows the member' 120 '[A-Z]*' lifecycle || true
  first="$(protection) while $(lifecycle)"
  row 'protected from scale-in as soon as it is listed' '?' "$first"
  wait_for 'the member is in service' 600 'InService' lifecycle || return 1
  row 'launched to InService' 'InService' "$seen" "$(since "$begun")"
  row 'protected once in service' 'True' "$(protection)"
  log_in 'launched to a login'
}

# log_in WHAT: how long until a login works, from now on.
log_in() {
  if [[ -z $login ]]; then
    row "$1" '?' 'not checked: no --login'
    return 0
  fi
  local begun
  begun=$(now)
  wait_for 'a login works' 300 '????????-*' boot_id || true
  row "$1" '????????-*' "$seen" "$(since "$begun")"
}

standby() {
  local begun
  begun=$(now)
  row 'EnterStandby' 'done' "$(outcome autoscaling enter-standby --auto-scaling-group-name "$run" \
    --instance-ids "$instance" --should-decrement-desired-capacity)"
  wait_for 'the member stands by' 120 'Standby' lifecycle || true
  row 'reached Standby' 'Standby' "$seen" "$(since "$begun")"
  call autoscaling update-auto-scaling-group --auto-scaling-group-name "$run" --max-size 0 || true
  row 'ExitStandby beyond the maximum size' '?' "$(outcome autoscaling exit-standby --auto-scaling-group-name "$run" \
    --instance-ids "$instance")"
  call autoscaling update-auto-scaling-group --auto-scaling-group-name "$run" --max-size 1 || true
  if [[ $(lifecycle) == Standby || $dry_run == yes ]]; then
    row 'ExitStandby within it' 'done' "$(outcome autoscaling exit-standby --auto-scaling-group-name "$run" \
      --instance-ids "$instance")"
  fi
  wait_for 'the member is in service again' 120 'InService' lifecycle
}

leave_group() {
  local begun seen_detach
  begun=$(now)
  as_operator call autoscaling terminate-instance-in-auto-scaling-group --instance-id "$instance" \
    --should-decrement-desired-capacity >/dev/null || return 1
  wait_for 'the hook holds the member' 120 'Terminating:Wait' lifecycle || return 1
  row 'TerminateInstanceInAutoScalingGroup leads to' 'Terminating:Wait' "$seen" "$(since "$begun")"
  row 'protecting a terminating member' 'refused: ValidationError' "$(as_operator outcome autoscaling set-instance-protection \
    --auto-scaling-group-name "$run" --instance-ids "$instance" --protected-from-scale-in)"
  row 'RecordLifecycleActionHeartbeat' 'done' "$(as_operator outcome autoscaling record-lifecycle-action-heartbeat \
    --auto-scaling-group-name "$run" --lifecycle-hook-name "$run" --instance-id "$instance")"
  seen_detach=$(as_operator outcome autoscaling detach-instances --auto-scaling-group-name "$run" --instance-ids "$instance" \
    --no-should-decrement-desired-capacity)
  row 'DetachInstances while Terminating:Wait' '?' "$seen_detach"
  if [[ $seen_detach != 'done' || $dry_run == yes ]]; then
    begun=$(now)
    row 'CompleteLifecycleAction by ABANDON' 'done' "$(as_operator outcome autoscaling complete-lifecycle-action \
      --auto-scaling-group-name "$run" --lifecycle-hook-name "$run" --instance-id "$instance" \
      --lifecycle-action-result ABANDON)"
    wait_for 'the member is retained' 180 'Terminating:Retained' lifecycle || return 1
    row 'TerminateHookAbandon=retain leads to' 'Terminating:Retained' "$seen" "$(since "$begun")"
    begun=$(now)
    row 'DetachInstances of a retained member' 'done' "$(as_operator outcome autoscaling detach-instances \
      --auto-scaling-group-name "$run" --instance-ids "$instance" --no-should-decrement-desired-capacity)"
  fi
  wait_for 'the group lists the instance no more' 300 'None' lifecycle || return 1
  row 'left the group' 'None' "$seen" "$(since "$begun")"
  row 'and runs on' 'running' "$(instance_state)"
  row 'mark it as kept' 'done' "$(as_operator outcome ec2 create-tags --resources "$instance" \
    --tags Key=dormouse.dev/slot-0,Value=check)"
  row 'take the mark off' 'done' "$(as_operator outcome ec2 delete-tags --resources "$instance" \
    --tags Key=dormouse.dev/slot-0)"
  row 'protect it from termination' 'done' "$(as_operator outcome ec2 modify-instance-attribute \
    --instance-id "$instance" --disable-api-termination)"
  row 'protect it no more' 'done' "$(as_operator outcome ec2 modify-instance-attribute \
    --instance-id "$instance" --no-disable-api-termination)"
}

# stop_and_start NAME [--hibernate]: whether the boot id is kept is what hibernation is about.
stop_and_start() {
  local name=$1 begun before='' after='' result wanted=other
  shift
  [[ ${1:-} != --hibernate ]] || wanted=same
  [[ -z $login ]] || before=$(boot_id || true)
  begun=$(now)
  result=$(as_operator outcome ec2 stop-instances --instance-ids "$instance" "$@")
  if [[ $result != 'done' ]]; then
    row "$name" '?' "$result"
    return 0
  fi
  wait_for 'the instance is stopped' 900 'stopped' instance_state || return 1
  row "$name: stopped" 'stopped' "$seen" "$(since "$begun")"
  row "$name: the reason it gives" '?' "$(call ec2 describe-instances --instance-ids "$instance" \
    --query 'Reservations[0].Instances[0].StateReason.Code')"
  begun=$(now)
  as_operator call ec2 start-instances --instance-ids "$instance" >/dev/null || { row "$name: start" 'done' "$(error_code)"; return 1; }
  wait_for 'the instance runs' 600 'running' instance_state || return 1
  row "$name: started again" 'running' "$seen" "$(since "$begun")"
  log_in "$name: start to a login"
  if [[ -z $login ]]; then
    row "$name: boot id" "$wanted" 'not checked: no --login'
    return 0
  fi
  after=$(boot_id || true)
  [[ $before == "$after" ]] && result=same || result=other
  row "$name: boot id" "$wanted" "$result"
}

volumes() {
  local begun
  begun=$(now)
  volume=$(as_operator call ec2 create-volume --size 1 --volume-type gp3 --encrypted --availability-zone "$zone" \
    --tag-specifications "ResourceType=volume,Tags=[{Key=Name,Value=$run},{Key=dormouse.dev/cluster,Value=$cluster}]" --query VolumeId) || return 1
  [[ $dry_run == no ]] || volume=vol-VOLUME
  wait_for 'the volume is there' 120 'available *' volume_state "$volume" || return 1
  row 'volume made' 'available *' "$seen" "$(since "$begun")"
  attach_and_detach "$volume" 'volume' || return 1

  begun=$(now)
  snapshot=$(as_operator call ec2 create-snapshot --volume-id "$volume" \
    --tag-specifications "ResourceType=snapshot,Tags=[{Key=Name,Value=$run},{Key=dormouse.dev/cluster,Value=$cluster}]" --query SnapshotId) || return 1
  [[ $dry_run == no ]] || snapshot=snap-SNAPSHOT
  wait_for 'the snapshot is complete' 900 'completed' call ec2 describe-snapshots --snapshot-ids "$snapshot" \
    --query 'Snapshots[0].State' || return 1
  row 'snapshot of a nearly empty volume' 'completed' "$seen" "$(since "$begun")"
  begun=$(now)
  restored=$(as_operator call ec2 create-volume --snapshot-id "$snapshot" --volume-type gp3 --availability-zone "$zone" \
    --tag-specifications "ResourceType=volume,Tags=[{Key=Name,Value=$run},{Key=dormouse.dev/cluster,Value=$cluster}]" --query VolumeId) || return 1
  [[ $dry_run == no ]] || restored=vol-RESTORED
  wait_for 'the volume is there' 300 'available *' volume_state "$restored" || return 1
  row 'volume made of the snapshot' 'available *' "$seen" "$(since "$begun")"
  attach_and_detach "$restored" 'restored volume'
}

# attach_and_detach VOLUME WHAT: the times, and by a login whether the machine sees it by its id.
attach_and_detach() {
  local begun
  begun=$(now)
  as_operator call ec2 attach-volume --volume-id "$1" --instance-id "$instance" --device /dev/sdf >/dev/null || return 1
  wait_for 'the volume is attached' 300 'in-use attached' volume_state "$1" || return 1
  row "$2 attached" 'in-use attached' "$seen" "$(since "$begun")"
  if [[ -n $login ]]; then
    begun=$(now)
    wait_for 'the machine shows the volume' 60 '/dev/*' \
      remote "readlink -f /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${1/-/}" || true
    row "$2 found by its id" '/dev/*' "$seen" "$(since "$begun")"
  else
    row "$2 found by its id" '/dev/*' 'not checked: no --login'
  fi
  begun=$(now)
  as_operator call ec2 detach-volume --volume-id "$1" --instance-id "$instance" >/dev/null || return 1
  wait_for 'the volume is detached' 300 'available *' volume_state "$1" || return 1
  row "$2 detached" 'available *' "$seen" "$(since "$begun")"
}

# What the conditions of the policy allow and deny, by IAM's own simulation: nothing is changed by it.
policy() {
  local file=$work/policy.json account=123456789012 ours=dormouse.dev/cluster
  sed -e "s/ACCOUNT_ID/$account/g; s/REGION/$region/g; s/CLUSTER_ID/check/g; s/SSH_USERNAME/ubuntu/g" \
    "$here/iam-policy.json" >"$file"
  allowed_by_policy
  denied_by_policy
}

# Each action of the policy on what it is meant for; a test compares this list with the policy.
allowed_by_policy() {
  local action on="arn:aws:ec2:$region:$account" shots="arn:aws:ec2:$region::snapshot" tag=aws:ResourceTag/$ours=check
  local born=aws:RequestTag/$ours=check keys=aws:TagKeys=dormouse.dev/pool
  local group="arn:aws:autoscaling:$region:$account:autoScalingGroup:1:autoScalingGroupName/x"
  for action in autoscaling:DescribeAutoScalingGroups autoscaling:DescribeInstanceRefreshes \
    autoscaling:DescribeLifecycleHooks autoscaling:DescribePolicies autoscaling:DescribeScalingActivities \
    autoscaling:DescribeWarmPool ec2:DescribeInstances ec2:DescribeSnapshots ec2:DescribeVolumes \
    ec2:CreateFleet ec2:DescribeLaunchTemplateVersions; do
    simulate allowed "$action" "$action" '*'
  done
  for action in CompleteLifecycleAction DetachInstances LaunchInstances RecordLifecycleActionHeartbeat \
    SetDesiredCapacity SetInstanceProtection TerminateInstanceInAutoScalingGroup; do
    simulate allowed "$action of our group" "autoscaling:$action" "$group" "$tag"
  done
  for action in CreateOrUpdateTags DeleteTags; do
    simulate allowed "$action of our group" "autoscaling:$action" "$group" "$tag" "$keys"
  done
  for action in AttachVolume DetachVolume StartInstances StopInstances TerminateInstances; do
    simulate allowed "$action of our instance" "ec2:$action" "$on:instance/i-1" "$tag"
  done
  for action in DisableApiTermination DisableApiStop; do
    simulate allowed "$action of our instance" ec2:ModifyInstanceAttribute "$on:instance/i-1" "$tag" \
      "ec2:Attribute=$action"
  done
  simulate allowed 'log in to our instance' ec2-instance-connect:SendSSHPublicKey "$on:instance/i-1" "$tag" \
    ec2:osuser=ubuntu
  for action in AttachVolume DetachVolume CreateSnapshot DeleteVolume; do
    simulate allowed "$action of our volume" "ec2:$action" "$on:volume/vol-1" "$tag"
  done
  for action in CreateVolume CopySnapshot DeleteSnapshot; do
    simulate allowed "$action of our snapshot" "ec2:$action" "$shots/snap-1" "$tag"
  done
  simulate allowed 'CreateVolume with our tag' ec2:CreateVolume "$on:volume/*" "$born"
  for action in CreateSnapshot CopySnapshot; do
    simulate allowed "$action with our tag" "ec2:$action" "$shots/*" "$born"
  done
  simulate allowed 'the tags of a volume from birth' ec2:CreateTags "$on:volume/*" "$born" ec2:CreateAction=CreateVolume
  simulate allowed 'the tags of a snapshot from birth' ec2:CreateTags "$shots/*" "$born" \
    ec2:CreateAction=CreateSnapshot
  for action in CreateTags DeleteTags; do
    simulate allowed "$action of our instance" "ec2:$action" "$on:instance/i-1" "$tag" "$keys"
  done
}

denied_by_policy() {
  local on="arn:aws:ec2:$region:$account"
  simulate implicitDeny 'stop an instance of another cluster' ec2:StopInstances "$on:instance/i-1" \
    "aws:ResourceTag/$ours=other"
  simulate implicitDeny 'stop an untagged instance' ec2:StopInstances "$on:instance/i-1"
  simulate implicitDeny 'change the user data of ours' ec2:ModifyInstanceAttribute "$on:instance/i-1" \
    "aws:ResourceTag/$ours=check" ec2:Attribute=UserData
  simulate implicitDeny 'delete a volume of another cluster' ec2:DeleteVolume "$on:volume/vol-1" \
    "aws:ResourceTag/$ours=other"
  simulate implicitDeny 'make a volume without our tag' ec2:CreateVolume "$on:volume/*"
  simulate implicitDeny 'claim an untagged instance' ec2:CreateTags "$on:instance/i-1" \
    "aws:RequestTag/$ours=check" "aws:TagKeys=$ours"
  simulate implicitDeny 'log in as another user' ec2-instance-connect:SendSSHPublicKey "$on:instance/i-1" \
    "aws:ResourceTag/$ours=check" ec2:osuser=root
  simulate implicitDeny 'resize a group of another cluster' autoscaling:SetDesiredCapacity \
    "arn:aws:autoscaling:$region:$account:autoScalingGroup:1:autoScalingGroupName/x" "aws:ResourceTag/$ours=other"
}

# simulate DECISION WHAT ACTION RESOURCE [KEY=VALUE]...
simulate() {
  local decision=$1 what=$2 action=$3 resource=$4 entry type context=() answer
  shift 4
  for entry in "$@"; do
    type=string
    [[ $entry != aws:TagKeys=* ]] || type=stringList
    context+=("ContextKeyName=${entry%%=*},ContextKeyValues=${entry#*=},ContextKeyType=$type")
  done
  [[ $dry_run == no ]] || printf '  (%s is expected of %s)\n' "$decision" "$action" >&2
  answer=$(call iam simulate-custom-policy --policy-input-list "file://$work/policy.json" --action-names "$action" \
    --resource-arns "$resource" ${context[0]+--context-entries "${context[@]}"} \
    --query 'EvaluationResults[0].EvalDecision') || answer="not checked: $(error_code)"
  row "policy: $what" "$decision" "$answer"
}

# --- from here on, in order ----------------------------------------------------------------------------------------------

if [[ $dry_run == no ]]; then
  command -v aws >/dev/null || { printf 'check-account: there is no aws here: install the AWS CLI, version 2\n' >&2; exit 1; }
  account=$(call sts get-caller-identity --query Account) || { cat "$work/error" >&2; exit 1; }
  call ec2 describe-launch-templates --launch-template-names "$template" --query 'LaunchTemplates[0].LaunchTemplateId' \
    >/dev/null || { cat "$work/error" >&2; exit 1; }
else
  account=ACCOUNT
  # Calls are made where their answer is read from standard output.
  exec 2>&1
  printf 'these calls would be made, and what is made would be removed:\n'
fi
[[ -z $login || $dry_run == yes ]] || ssh-keygen -q -t ed25519 -N '' -f "$work/key"

# An instance for an hour at most, each start billed for a minute at least; gp3 and snapshots at list prices, by the hour.
cost=$(awk -v price="$price" -v root="$root_gib" 'BEGIN { printf "%.2f", price + (root + 2) * 0.08 / 730 + 0.05 / 730 + 0.005 }')
cat <<TEXT
account $account, region $region, group $run
one instance of template $template for less than an hour, two volumes of 1 GiB, one snapshot:
about \$$cost at most, at \$$price an hour for the instance (--price-per-hour).
TEXT
if [[ $ask == yes && $dry_run == no ]]; then
  read -r -p 'Go on? Type yes: ' answer
  [[ $answer == yes ]] || { printf 'nothing was done\n'; exit 0; }
fi
trap clean_up EXIT
trap 'exit 130' INT TERM

failed=()
# step NAME FUNCTION...: a step that fails is named, and ends those that build on it.
step() {
  local name=$1
  shift
  printf '\n%s\n' "$name"
  "$@" && return 0
  failed+=("$name: $(head -c 300 "$work/error" 2>/dev/null | tr '\n' ' ')")
  return 1
}

step 'policy' policy || true
if [[ -n $role_arn ]] && ! step 'take on the role' assume; then
  # Nothing that follows would say anything about the role.
  printf '%s\n' "${failed[@]}" >&2
  exit 1
fi
if step 'group' make_group && step 'launch' launch; then
  step 'standby' standby || true
  if step 'leave the group' leave_group; then
    step 'volumes' volumes || true
    step 'stop and start' stop_and_start 'stop' || true
    step 'hibernate' stop_and_start 'hibernate' --hibernate || true
  fi
fi
clean_up

if [[ $dry_run == no ]]; then
  printf '\n%-10s %-52s %-26s %s\n' '' 'what' 'expected' 'seen'
  different=0
  for line in "${rows[@]}"; do
    IFS='|' read -r verdict what expected got time <<<"$line"
    printf '%-10s %-52s %-26s %s %s\n' "$verdict" "$what" "$expected" "$got" "$time"
    [[ $verdict != different ]] || different=$((different + 1))
  done
  for line in ${failed[0]+"${failed[@]}"}; do
    printf 'FAILED     %s\n' "$line"
  done
  printf '\n"?" and "learnt": what AWS does there is not documented well enough to expect something. Please tell us.\n'
  ((different == 0 && ${#failed[@]} == 0))
fi
