{{/* Name of the chart, or what the user calls it. */}}
{{- define "sloserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of this release's objects. */}}
{{- define "sloserve.fullname" -}}
{{- $name := include "sloserve.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what belongs to no namespace: unique in the cluster. */}}
{{- define "sloserve.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "sloserve.fullname" .) -}}
{{- end -}}

{{- define "sloserve.operatorName" -}}
{{- printf "%s-operator" (include "sloserve.fullname" .) -}}
{{- end -}}

{{- define "sloserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sloserve.operatorName" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount to use, or set serviceAccount.create to true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods; immutable in a Deployment. */}}
{{- define "sloserve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sloserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object. */}}
{{- define "sloserve.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "sloserve.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sloserve
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Reference of one image: (dict "root" . "image" .Values.images.gateway). */}}
{{- define "sloserve.image" -}}
{{- $images := .root.Values.images -}}
{{- $tag := .image.tag | default $images.tag | default .root.Chart.AppVersion -}}
{{- $where := .image.repository -}}
{{- if $images.registry -}}
{{- $where = printf "%s/%s" (trimSuffix "/" $images.registry) .image.repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $where .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $where $tag -}}
{{- end -}}
{{- end -}}

{{/* {a: b, c: d} as a=b,c=d. */}}
{{- define "sloserve.pairs" -}}
{{- $pairs := list -}}
{{- range $name, $value := . -}}
{{- $pairs = append $pairs (printf "%s=%v" $name $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* What the operator does in a namespace with services; docs/install.md says why. */}}
{{- define "sloserve.rules" -}}
- apiGroups: [sloserve.io]
  resources: [sloservices]
  verbs: [get, list, watch]
- apiGroups: [sloserve.io]
  resources: [sloservices/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors, prometheusrules]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
{{- end -}}

{{/* What a schema can't say in words that help. */}}
{{- define "sloserve.check" -}}
{{- range .Values.operator.env -}}
{{- if hasPrefix "SLOSERVE_" .name -}}
{{- fail (printf "operator.env: %s is set by the chart from its other values (see README.md); remove it" .name) -}}
{{- end -}}
{{- end -}}
{{- $own := include "sloserve.selectorLabels" . | fromYaml -}}
{{- $own = merge $own (dict "app.kubernetes.io/version" "" "app.kubernetes.io/part-of" "" "app.kubernetes.io/managed-by" "" "helm.sh/chart" "") -}}
{{- range $where, $labels := dict "commonLabels" .Values.commonLabels "operator.podLabels" .Values.operator.podLabels -}}
{{- range $name, $_ := $labels -}}
{{- if hasKey $own $name -}}
{{- fail (printf "%s: %s is a label that the chart sets itself; choose another name" $where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service) -}}
{{- fail "metrics.serviceMonitor.enabled: a ServiceMonitor scrapes a Service; set metrics.service to true as well" -}}
{{- end -}}
{{- end -}}
