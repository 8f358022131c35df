{{/* Names, labels and the time to end, which several templates use. */}}

{{- define "plusofon-verify.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* Those that never change: a Deployment's selector cannot be changed. */}}
{{- define "plusofon-verify.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "plusofon-verify.labels" -}}
{{ include "plusofon-verify.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/*
Seconds until a pod that ends is killed: the pause of preStop, the longest request (the provider's timeout, and Redis
before and after it), which the service finishes, and 8 for event streams, idle connections and background work.
*/}}
{{- define "plusofon-verify.terminationGracePeriodSeconds" -}}
{{- $settings := .Values.settings -}}
{{- $provider := float64 (default 10 $settings.PLUSOFON_TIMEOUT_SECONDS) -}}
{{- if $settings.RELAY_CHANNELS -}}
{{- $provider = maxf $provider (float64 (default 10 $settings.RELAY_TIMEOUT_SECONDS)) -}}
{{- end -}}
{{- $redis := float64 (default 1 $settings.REDIS_TIMEOUT_SECONDS) -}}
{{ add .Values.preStopSeconds (ceil (addf $provider (mulf 2 $redis)) | int) 8 }}
{{- end -}}
