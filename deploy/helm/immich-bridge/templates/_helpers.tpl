{{/* Names. */}}

{{- define "immich-bridge.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 54 | trimSuffix "-" }}
{{- end }}

{{/* Leaves room for the longest suffix within the 63 characters of a DNS label. */}}
{{- define "immich-bridge.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $full | trunc 54 | trimSuffix "-" }}
{{- end }}

{{- define "immich-bridge.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "immich-bridge.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "immich-bridge.image" -}}
{{- .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The key file makes do without a Secret. */}}
{{- define "immich-bridge.jwtSecretName" -}}
{{- if .Values.config.backupEnabled }}
{{- .Values.jwtSecret.existingSecret | default (ternary (include "immich-bridge.fullname" .) "" (not (empty .Values.jwtSecret.value))) }}
{{- end }}
{{- end }}

{{/* Labels. */}}

{{- define "immich-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "immich-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Component `server` are the pods that serve: services and policies select by it. */}}
{{- define "immich-bridge.componentLabels" -}}
{{ include "immich-bridge.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* All labels of an object: `root`, and if it has them its `component` and labels `more`. The chart's own win. */}}
{{- define "immich-bridge.labels" -}}
{{- $labels := include "immich-bridge.selectorLabels" .root | fromYaml }}
{{- with .component }}
{{- $_ := set $labels "app.kubernetes.io/component" . }}
{{- end }}
{{- $_ := set $labels "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- toYaml (merge $labels (.more | default dict) .root.Values.commonLabels) }}
{{- end }}

{{/* Settings. */}}

{{/* The environment, as a map of texts. A number from a values file is a float, and would read 5e+09. */}}
{{- define "immich-bridge.settings" -}}
{{- $settings := dict }}
{{- range $key, $value := .Values.config }}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
{{- if kindIs "slice" $value }}{{ $value = join "," $value }}{{ end }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $settings (snakecase $key | upper) (toString $value) }}{{ end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $settings "TLS_CERT_FILE" "/tls/tls.crt" }}
{{- $_ := set $settings "TLS_KEY_FILE" "/tls/tls.key" }}
{{- end }}
{{- if .Values.metrics.enabled }}
{{- $_ := set $settings "METRICS_ADDR" (printf ":%v" .Values.metrics.port) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- define "immich-bridge.port" -}}
{{- .Values.config.port | default (regexFind "[0-9]+$" (.Values.config.listenAddr | default ":8080")) }}
{{- end }}

{{- define "immich-bridge.scheme" -}}
{{- ternary "http" "https" (and (empty .Values.tls.existingSecret) (empty .Values.config.tlsCertFile)) }}
{{- end }}

{{/* A duration as the server reads it ("1h30m", "500ms", "45"), in whole seconds, rounded up. */}}
{{- define "immich-bridge.seconds" -}}
{{- $factors := dict "ms" 0.001 "s" 1 "m" 60 "h" 3600 "d" 86400 "" 1 }}
{{- $seconds := 0.0 }}
{{- range regexFindAll "[0-9]+([.][0-9]+)?(ms|[smhd])?" (toString .) -1 }}
{{- $number := regexFind "^[0-9.]+" . }}
{{- $seconds = addf $seconds (mulf (float64 $number) (get $factors (trimPrefix $number .))) }}
{{- end }}
{{- ceil $seconds | int64 }}
{{- end }}

{{/* The server ends by itself within seconds after its grace; killed earlier it would cut uploads off. */}}
{{- define "immich-bridge.terminationGrace" -}}
{{- $grace := .Values.config.shutdownGrace }}
{{- if or (kindIs "invalid" $grace) (eq (toString $grace) "") }}{{ $grace = "30s" }}{{ end }}
{{- if kindIs "float64" $grace }}{{ $grace = int64 $grace }}{{ end }}
{{- add (include "immich-bridge.seconds" $grace) .Values.preStopSeconds 10 }}
{{- end }}

{{- define "immich-bridge.probe" -}}
{{- $probe := deepCopy .probe }}
{{- if and $probe.httpGet (eq (include "immich-bridge.scheme" .root) "https") }}
{{- $_ := set $probe.httpGet "scheme" "HTTPS" }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{/* What would install, and then lose or mix up data, or do nothing at all. */}}
{{- define "immich-bridge.refuseMistakes" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) }}
{{- if and .Values.config.backupEnabled $several }}
{{- fail "\n\nThe photo backup keeps its database in a file that one pod owns, so it cannot run with replicaCount above 1 or with autoscaling.\nEither set config.backupEnabled=false, and the bridge alone scales freely, or set replicaCount=1 and autoscaling.enabled=false." }}
{{- end }}
{{- if and .Values.config.backupEnabled (gt (int (.Values.config.workers | default 1)) 1) }}
{{- fail "\n\nThe photo backup is the work of one process, so it cannot run with config.workers above 1.\nEither set config.backupEnabled=false, or config.workers=1." }}
{{- end }}
{{- if and .Values.config.backupEnabled (ne (dig "type" "Recreate" .Values.strategy) "Recreate") }}
{{- fail "\n\nWith the photo backup, strategy.type must be Recreate: a rolling update would run two pods on one database." }}
{{- end }}
{{- if not (or .Values.config.backupEnabled .Values.config.immichServerURL) }}
{{- fail "\n\nNothing is left to serve: set config.immichServerURL, or config.backupEnabled=true." }}
{{- end }}
{{- if and .Values.jwtSecret.existingSecret .Values.jwtSecret.value }}
{{- fail "\n\nSet jwtSecret.existingSecret or jwtSecret.value, not both." }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "\n\nautoscaling.minReplicas is above autoscaling.maxReplicas." }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) }}
{{- fail "\n\nmetrics.serviceMonitor.enabled needs metrics.enabled=true." }}
{{- end }}
{{- if and .Values.metrics.enabled (eq (include "immich-bridge.port" .) (toString .Values.metrics.port)) }}
{{- fail "\n\nmetrics.port and the port of the server must differ." }}
{{- end }}
{{- end }}
