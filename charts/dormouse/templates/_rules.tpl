{{/* What the operator may do to the objects it serves. Secrets are read by the names that pools and leases give, so it
needs neither to list nor to watch them. */}}
{{- define "dormouse.rules" -}}
- apiGroups: [dormouse.dev]
  resources: [runnerpools]
  verbs: [get, list, watch, patch, update]
- apiGroups: [dormouse.dev]
  resources: [suspendedenvironments, jobleases]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [dormouse.dev]
  resources:
    - runnerpools/status
    - runnerpools/finalizers
    - suspendedenvironments/status
    - suspendedenvironments/finalizers
    - jobleases/status
    - jobleases/finalizers
  verbs: [patch, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{ include "dormouse.leaserules" . }}
{{- end }}

{{/* Which replica holds which pool. */}}
{{- define "dormouse.leaserules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, update, patch, delete]
{{- end }}

{{/* Its uid is the cluster's name in the tags of what is made in a cloud. A Role cannot grant it: aws.clusterId then. */}}
{{- define "dormouse.clusterrules" -}}
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [kube-system]
  verbs: [get]
{{- end }}
