# The group and the template of its instances. It begins empty: the pool sets its desired capacity.

locals {
  # By which the operator finds what is its own, and by which its policy lets it.
  cluster_tag = { "dormouse.dev/cluster" = var.cluster_id }
}

data "aws_ami" "this" {
  filter {
    name   = "image-id"
    values = [var.image_id]
  }
}

resource "aws_launch_template" "this" {
  name                   = var.name
  image_id               = var.image_id
  instance_type          = var.instance_type
  key_name               = var.key_name
  update_default_version = true
  tags                   = var.tags

  # Jobs can ask the metadata service for whatever is there. So: no instance profile here, nothing secret in the user
  # data, sessions only, and no answer to a container behind a bridge.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  # At every boot: nobody but root asks the metadata service. The supervisor does, for spot notices.
  user_data = base64encode(<<-EOT
    #cloud-config
    bootcmd:
      - iptables -w -C OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT 2>/dev/null || iptables -w -I OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT
  EOT
  )

  network_interfaces {
    associate_public_ip_address = var.associate_public_ip
    delete_on_termination       = true
    security_groups             = [aws_security_group.instances.id]
  }

  block_device_mappings {
    device_name = data.aws_ami.this.root_device_name

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      encrypted             = true
      kms_key_id            = var.root_volume_kms_key_arn
      delete_on_termination = true
    }
  }

  dynamic "hibernation_options" {
    for_each = var.hibernation ? [true] : []

    content {
      configured = true
    }
  }

  dynamic "instance_market_options" {
    for_each = var.spot ? [true] : []

    content {
      market_type = "spot"
    }
  }

  # Instances have the cluster's tag from their launch on, so that the operator may touch them.
  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, local.cluster_tag, { Name = var.name })
  }

  # Root volumes go with their instances and are not the operator's to find: no cluster tag on them.
  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = var.name })
  }
}

resource "aws_autoscaling_group" "this" {
  name                = var.name
  vpc_zone_identifier = var.subnet_ids
  health_check_type   = "EC2"

  # Detaching a member with a sleeping environment makes the group smaller, which it must be allowed to be.
  min_size = 0
  max_size = var.max_size

  # Scale-in is the pool's to decide. New members are protected from any other.
  protect_from_scale_in = true
  # Moving members between zones would take them from under jobs.
  suspended_processes = ["AZRebalance"]
  capacity_rebalance  = false

  wait_for_capacity_timeout = "0"

  launch_template {
    id      = aws_launch_template.this.id
    version = "$Latest"
  }

  # A member whose hook has run out is kept, not terminated: what it holds outlives an outage of the operator that is longer
  # than the hook waits.
  instance_lifecycle_policy {
    retention_triggers {
      terminate_hook_abandon = "retain"
    }
  }

  dynamic "warm_pool" {
    for_each = var.warm_pool_size == null ? [] : [var.warm_pool_size]

    content {
      pool_state                  = "Stopped"
      min_size                    = warm_pool.value
      max_group_prepared_capacity = warm_pool.value

      # A member that ran a job is never handed on.
      instance_reuse_policy {
        reuse_on_scale_in = false
      }
    }
  }

  # Of the group itself: the template tags instances.
  dynamic "tag" {
    for_each = merge(var.tags, local.cluster_tag, { Name = var.name })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }

  lifecycle {
    # Both are the operator's: how many members there are, and the tags that say which pool has the group.
    ignore_changes = [desired_capacity, tag]
  }
}

# Holds a member that is to go until its job is over and its environment is saved.
resource "aws_autoscaling_lifecycle_hook" "terminate" {
  name                   = "dormouse"
  autoscaling_group_name = aws_autoscaling_group.this.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = var.terminate_hook_seconds
  # Only an abandoned hook makes the group retain its member.
  default_result = "ABANDON"
}

resource "aws_security_group" "instances" {
  name        = "${var.name}-instances"
  description = "CI instances: SSH from the operator, anything outwards"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "ssh_from_cidrs" {
  for_each = toset(var.ssh_from_cidrs)

  security_group_id = aws_security_group.instances.id
  description       = "SSH from the operator"
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  cidr_ipv4         = each.value
}

resource "aws_vpc_security_group_ingress_rule" "ssh_from_groups" {
  for_each = toset(var.ssh_from_security_groups)

  security_group_id            = aws_security_group.instances.id
  description                  = "SSH from the operator"
  ip_protocol                  = "tcp"
  from_port                    = 22
  to_port                      = 22
  referenced_security_group_id = each.value
}

# GitLab for the sources, and whatever jobs fetch.
resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.instances.id
  description       = "Anything"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}
