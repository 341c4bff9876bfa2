# The operator's role: what the policies beside this folder allow, for its service account alone.

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

data "aws_region" "this" {}

locals {
  partition = "arn:${data.aws_partition.this.partition}:"
  region    = data.aws_region.this.region

  # The policy is the file, with a value for each of its words in capitals. The cluster id comes last: it is free text.
  policy = replace(
    replace(
      replace(
        replace(
          replace(file("${path.module}/../iam-policy.json"), "arn:aws:", local.partition),
          "ACCOUNT_ID", data.aws_caller_identity.this.account_id
        ),
        "REGION", local.region
      ),
      "SSH_USERNAME", var.ssh_username
    ),
    "CLUSTER_ID", var.cluster_id
  )

  uses_irsa = var.oidc_provider_arn != null
  # arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLE, from behind the first slash.
  issuer = local.uses_irsa ? regex("^[^/]+/(.+)$", var.oidc_provider_arn)[0] : ""
}

data "aws_iam_policy_document" "trust" {
  # IRSA: a token of this one service account of this one cluster.
  dynamic "statement" {
    for_each = local.uses_irsa ? [true] : []

    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [var.oidc_provider_arn]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = ["system:serviceaccount:${var.service_account.namespace}:${var.service_account.name}"]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  # EKS Pod Identity: which service account gets the role is said by the association below.
  dynamic "statement" {
    for_each = local.uses_irsa ? [] : [true]

    content {
      actions = ["sts:AssumeRole", "sts:TagSession"]

      principals {
        type        = "Service"
        identifiers = ["pods.eks.amazonaws.com"]
      }

      condition {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [data.aws_caller_identity.this.account_id]
      }
    }
  }
}

resource "aws_iam_role" "operator" {
  name               = "dormouse-${var.name}"
  description        = "The Dormouse operator of cluster ${var.cluster_id}"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "operator" {
  name   = "dormouse"
  role   = aws_iam_role.operator.id
  policy = local.policy
}

# A key of the account's own (aws/ebs) needs none of this.
resource "aws_iam_role_policy" "operator_kms" {
  count = var.workspace_kms_key_arn == null ? 0 : 1

  name = "dormouse-kms"
  role = aws_iam_role.operator.id
  policy = replace(
    replace(file("${path.module}/../iam-policy-kms.json"), "KMS_KEY_ARN", var.workspace_kms_key_arn),
    "REGION", local.region
  )
}

resource "aws_eks_pod_identity_association" "operator" {
  count = !local.uses_irsa && var.eks_cluster_name != null ? 1 : 0

  cluster_name    = var.eks_cluster_name
  namespace       = var.service_account.namespace
  service_account = var.service_account.name
  role_arn        = aws_iam_role.operator.arn
  tags            = var.tags
}
