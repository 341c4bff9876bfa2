{{/* What the operator is told of AWS: a ConfigMap of files, made only when there is something in it. */}}

{{- define "dormouse.aws.files" -}}
{{- with .Values.aws.groups }}
groups.yaml: |
  {{- dict "namespaces" . | toYaml | nindent 2 }}
{{- end }}
{{- with .Values.aws.prices }}
prices.yaml: |
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "dormouse.aws.env" -}}
{{- with .Values.aws.groups }}
- name: DORMOUSE_AWS_GROUPS
  value: /etc/dormouse/aws/groups.yaml
{{- end }}
{{- with .Values.aws.prices }}
- name: DORMOUSE_PRICES
  value: /etc/dormouse/aws/prices.yaml
{{- end }}
{{- with .Values.aws.clusterId }}
- name: DORMOUSE_CLUSTER_ID
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "dormouse.aws.check" -}}
{{- if and .Values.watchNamespace .Values.aws.groups (not .Values.aws.clusterId) }}
{{- fail "aws.clusterId must be given with watchNamespace and aws.groups: a Role cannot read the uid of namespace kube-system, which names the cluster otherwise. Print it with: kubectl get namespace kube-system -o jsonpath={.metadata.uid}" }}
{{- end }}
{{- end }}
