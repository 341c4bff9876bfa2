output "auto_scaling_group" {
  description = "For spec.provider.aws.autoScalingGroup of the pool, and for the operator's list of allowed groups."
  value       = aws_autoscaling_group.this.name
}

output "region" {
  description = "For spec.provider.aws.region of the pool."
  value       = local.region
}

output "cluster_id" {
  description = "For the chart's aws.clusterId, where it is not the uid of namespace kube-system."
  value       = var.cluster_id
}

output "operator_role_arn" {
  description = "For the annotation eks.amazonaws.com/role-arn of the operator's service account, with IRSA."
  value       = aws_iam_role.operator.arn
}

output "security_group_id" {
  description = "Of the instances."
  value       = aws_security_group.instances.id
}
