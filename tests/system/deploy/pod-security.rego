# METADATA
# title: Rules of the Pod Security profiles that the scanner's own checks have not yet
# custom:
#   id: TIMBER-0001
#   severity: HIGH
#   input:
#     selector:
#       - type: kubernetes
package user.timber

import rego.v1

pod := input.spec.template.spec

# Kubernetes 1.34: a probe or hook would make the kubelet send requests to wherever it likes.
deny contains result.new("Host Probes / Lifecycle Hooks", {}) if {
	walk(pod, [path, host])
	path[count(path) - 1] == "host"
	path[count(path) - 2] in {"httpGet", "tcpSocket"}
	host != ""
}

# Kubernetes 1.30 has a field for what was an annotation.
deny contains result.new("AppArmor", {}) if {
	walk(pod, [path, profile])
	path[count(path) - 1] == "appArmorProfile"
	not profile.type in {"RuntimeDefault", "Localhost"}
}
