terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # instance_lifecycle_policy of aws_autoscaling_group. README.md says what to do with an older one.
      version = ">= 6.56"
    }
  }
}
