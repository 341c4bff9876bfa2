variable "name" {
  description = "Name of the group, and of all that belongs to it. A pool names it in spec.provider.aws.autoScalingGroup."
  type        = string
  default     = "ci-linux"
}

variable "cluster_id" {
  description = "The cluster's id in tags and in the conditions of the policy: the chart's aws.clusterId, else the output of kubectl get namespace kube-system -o jsonpath={.metadata.uid}."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,63}$", var.cluster_id))
    error_message = "The cluster id has 1 to 63 letters, digits, dashes, underscores and dots."
  }
}

variable "vpc_id" {
  description = "The VPC of the instances."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the instances, each in a zone of its own. A workspace volume stays in its zone: fewer zones find an instance for it sooner."
  type        = list(string)
}

variable "image_id" {
  description = "The machine image: Linux with sshd, bash, git 2.31 or newer and findutils; ec2-instance-connect where the pool logs in that way; the hibernation agent with hibernation."
  type        = string
}

variable "instance_type" {
  description = "Type of the instances."
  type        = string
  default     = "m6i.large"
}

variable "max_size" {
  description = "Most members. At least spec.maxInstances of the pool."
  type        = number
  default     = 10
}

variable "root_volume_gib" {
  description = "Size of the root volume in GiB. With hibernation it also has room for all of the memory."
  type        = number
  default     = 50
}

variable "root_volume_kms_key_arn" {
  description = "KMS key of the root volume; the account's default key without one."
  type        = string
  default     = null
}

variable "workspace_kms_key_arn" {
  description = "KMS key that the pool names in spec.workspaceVolume.kmsKeyId. It gets the operator the permissions it needs for that key."
  type        = string
  default     = null
}

variable "hibernation" {
  description = "Whether instances can hibernate, for spec.provider.aws.stopMode Hibernate. Not for spot instances, nor for every type and image."
  type        = bool
  default     = false
}

variable "spot" {
  description = "Whether instances are spot instances. They can be taken away with two minutes' notice, and cannot be stopped and started."
  type        = bool
  default     = false

  validation {
    condition     = !var.spot || (!var.hibernation && var.warm_pool_size == null)
    error_message = "Spot instances have neither hibernation nor a warm pool: unset hibernation and warm_pool_size."
  }
}

variable "warm_pool_size" {
  description = "Stopped instances that wait to be started: a new one is then there sooner. No warm pool without it."
  type        = number
  default     = null
}

variable "terminate_hook_seconds" {
  description = "How long a member that is to go waits without a word of the operator. It is the longest outage of the operator that costs no job: keep it well above the time in which you notice one."
  type        = number
  default     = 1800

  validation {
    condition     = var.terminate_hook_seconds >= 300 && var.terminate_hook_seconds <= 7200
    error_message = "The hook waits 300 to 7200 seconds: AWS allows no more, and with less a restart of the operator can cost a job."
  }
}

variable "associate_public_ip" {
  description = "Whether instances have a public address, for spec.ssh.useExternalAddress."
  type        = bool
  default     = false
}

variable "ssh_from_cidrs" {
  description = "Where the operator's connections come from: the addresses of the cluster's pods or nodes."
  type        = list(string)
  default     = []
}

variable "ssh_from_security_groups" {
  description = "The same by security group."
  type        = list(string)
  default     = []
}

variable "ssh_username" {
  description = "spec.ssh.username: EC2 Instance Connect puts a key on an instance for this user alone."
  type        = string
  default     = "ubuntu"
}

variable "key_name" {
  description = "A key pair for instances, where the pool has a private key. Not needed with EC2 Instance Connect."
  type        = string
  default     = null
}

variable "oidc_provider_arn" {
  description = "The IAM OIDC provider of the cluster, for IRSA. Without one the role trusts EKS Pod Identity."
  type        = string
  default     = null
}

variable "service_account" {
  description = "Namespace and name of the operator's service account."
  type        = object({ namespace = string, name = string })
  default     = { namespace = "dormouse-system", name = "dormouse" }
}

variable "eks_cluster_name" {
  description = "The EKS cluster whose service account gets the role by EKS Pod Identity. Not with oidc_provider_arn."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags for everything, such as a cost centre."
  type        = map(string)
  default     = {}
}
