"""The values that the chart is rendered with: those that work, and those that are refused."""

CREDENTIAL = {"name": "app", "tenant": "acme", "login": "app"}
HOSTS = [{"host": "worker-1", "node": 21}, {"host": "worker-2", "node": 22}]
TEST = {"to": "you@example.net", "from": "me@acme.example", "credentialsSecret": "app"}
EVERY_MONITOR = {name: {"enabled": True} for name in ("podMonitor", "rules", "dashboards")}

# Each is laid over the least values.
WORK = {
    "nothing besides": {},
    "one queue node": {"queue": {"replicas": 1}},
    "five queue nodes": {"queue": {"replicas": 5}},
    "a name": {"fullnameOverride": "post"},
    "a long name": {"fullnameOverride": "a-name-that-is-longer-than-kubernetes-lets-the-name-of-a-pod-be"},
    "a registry of one's own": {
        "image": {"repository": "registry.example/postroad", "tag": "0.1.0-1", "pullSecrets": ["registry"]}
    },
    "an image by digest": {"image": {"tag": "latest", "digest": "sha256:" + "0" * 64}},
    "a cluster that exists": {"cluster": {"id": "772405954527748686", "ledgerGroups": 8}},
    "IPv6": {"ipFamily": "IPv6"},
    "a certificate of one's own": {"ingress": {"tls": {"selfSigned": False, "secret": "mail-tls"}}},
    "a certificate from cert-manager": {"ingress": {"tls": {"selfSigned": False, "issuerRef": {"name": "le"}}}},
    "cert-manager between nodes": {"certificates": {"mode": "certManager"}},
    "cert-manager with an issuer": {
        "certificates": {"mode": "certManager", "certManager": {"issuerRef": {"name": "vault", "kind": "ClusterIssuer"}}}
    },
    "an authority of one's own": {"certificates": {"authority": {"create": False, "secret": "ca"}}},
    "a policy": {
        "policy": {
            "inline": {"tenants": [{"name": "acme", "pool": "default"}], "credentials": [dict(CREDENTIAL, stored_secret=True)]},
            "configMaps": ["limits"],
            "secrets": ["logins", "keys"],
        }
    },
    "settings": {
        "queue": {"settings": {"queue": {"message_age_max": "3d", "retry": {"copies_max": 2}}}},
        "ingress": {"settings": {"ingress": {"message_size_max": "50MiB", "recipients_max": 5000}}},
        "outbound": {"settings": {"guard": {"allow": ["10.0.0.0/8"]}, "outbound": {"connections_initial": 10}}},
        "control": {"settings": {"control": {"history_messages_max": 1000000000}}},
    },
    "text logs": {"telemetry": {"log_format": "text", "label_values_max": 500}},
    "autoscaling": {"ingress": {"autoscaling": {"enabled": True, "connections": 2000}}},
    "port 25 alone": {
        "ingress": {"ports": {"submission": {"port": 0}, "submissions": {"port": 0}, "relay": {"port": 25}, "grpc": {"port": 0}}}
    },
    "a balancer of a cloud": {
        "ingress": {
            "service": {
                "annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "external"},
                "loadBalancerClass": "service.k8s.aws/nlb",
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
            }
        }
    },
    "no balancer": {"ingress": {"service": {"type": "ClusterIP"}}},
    "addresses of machines": {
        "outbound": {"egress": {"mode": "hostNetwork", "hosts": HOSTS}},
        "networkPolicy": {"hostNetworks": ["10.0.0.0/24"]},
    },
    "addresses of machines with cert-manager": {
        "outbound": {"egress": {"mode": "hostNetwork", "hosts": HOSTS}, "nodeSelector": {"pool": "mail"}},
        "networkPolicy": {"enabled": False},
        "certificates": {"mode": "certManager"},
    },
    "outbound without volumes": {"outbound": {"persistence": {"enabled": False}, "replicas": 12}},
    "no network policies": {"networkPolicy": {"enabled": False}},
    "clients of one namespace": {
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}],
            "console": [{"podSelector": {"matchLabels": {"app": "proxy"}}}],
        }
    },
    "monitoring by pods": {"monitoring": EVERY_MONITOR},
    "monitoring by a Service": {"monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}},
    "a test": {"test": TEST},
    "a test with a private CA": {
        "test": dict(TEST, caSecret="ca"),
        "ingress": {"tls": {"selfSigned": False, "secret": "mail-tls"}, "ports": {"submission": {"port": 0}}},
    },
    "placement": {
        role: {
            "priorityClassName": "mail",
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "mail", "operator": "Exists"}],
            "podAnnotations": {"example.org/team": "mail"},
        }
        for role in ("queue", "ingress", "outbound", "control")
    },
    "no operator": {"operator": {"enabled": False}},
    "storage classes": {
        role: {"persistence": {"storageClass": "local", "size": "100Gi"}} for role in ("queue", "outbound", "control")
    },
}

# (values, words of the sentence that refuses them)
REFUSED = {
    "two queue nodes": ({"queue": {"replicas": 2}}, "/queue/replicas': value must be one of 1, 3, 5"),
    "a value that does not exist": ({"outbuond": {}}, "additional properties 'outbuond' not allowed"),
    "no memory limit": ({"queue": {"resources": {"limits": None}}}, "/queue/resources"),
    "the latest image": ({"image": {"tag": "latest"}}, "image.tag: `latest` changes under running pods"),
    "a certificate for a while": ({"certificates": {"authority": {"lifetime": "a year"}}}, "/certificates/authority/lifetime"),
    "no host name": ({"ingress": {"hostname": ""}}, "ingress.hostname: missing; give the name that clients connect to"),
    "half a host name": ({"ingress": {"hostname": "mail"}}, "ingress.hostname: `mail` is no full host name"),
    "no certificate": ({"ingress": {"tls": {"selfSigned": False}}}, "ingress.tls: clients need a certificate"),
    "two certificates": ({"ingress": {"tls": {"secret": "mail-tls"}}}, "only one of ingress.tls.secret and ingress.tls.selfSigned"),
    "no port": (
        {"ingress": {"ports": {name: {"port": 0} for name in ("submission", "submissions", "relay", "grpc")}}},
        "ingress.ports: every port is 0",
    ),
    "one port twice": ({"ingress": {"ports": {"relay": {"port": 587}}}}, "ingress.ports: two services have the same port"),
    "an id that is none": ({"cluster": {"id": "mail"}}, "cluster.id: `mail` is no id"),
    "a size that is none": ({"queue": {"persistence": {"size": "50G"}}}, "queue.persistence.size: `50G` is no size of a volume"),
    "a setting of the chart": (
        {"queue": {"settings": {"node": {"id": 7}}}},
        "queue.settings.node: the chart sets this itself; leave it out",
    ),
    "a setting outside of a section": (
        {"ingress": {"settings": {"message_size_max": "50MiB"}}},
        "ingress.settings.message_size_max: not a section",
    ),
    "a section of another role": (
        {"queue": {"settings": {"outbound": {"connect_timeout": "10s"}}}},
        "queue.settings.outbound: no section of queue; expected telemetry, queue",
    ),
    "a setting that does not exist": (
        {"queue": {"settings": {"queue": {"message_age": "3d"}}}},
        "/queue/settings/queue': additional properties 'message_age' not allowed",
    ),
    "a setting out of bounds": (
        {"ingress": {"settings": {"ingress": {"recipients_max": 7}}}},
        "/ingress/settings/ingress/recipients_max': minimum: got 7, want 100",
    ),
    "a telemetry setting that does not exist": ({"telemetry": {"log_level": "debug"}}, "additional properties 'log_level' not allowed"),
    "no time to drain": (
        {"ingress": {"settings": {"ingress": {"drain_timeout": "2m"}}}},
        "ingress.terminationGracePeriodSeconds: 60 is too short for a drain of 2m; give at least 135",
    ),
    "fewer than the fewest": (
        {"ingress": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
        "ingress.autoscaling: minReplicas 9 is more than maxReplicas 6",
    ),
    "an issuer without cert-manager": (
        {"certificates": {"certManager": {"issuerRef": {"name": "vault"}}}},
        "certificates.certManager.issuerRef: has no effect",
    ),
    "an authority from nowhere": (
        {"certificates": {"authority": {"create": False}}},
        "certificates.authority.secret: missing; with `create: false`",
    ),
    "addresses of no machine": (
        {"outbound": {"egress": {"mode": "hostNetwork"}}},
        "outbound.egress.hosts: missing; with `mode: hostNetwork` name each machine",
    ),
    "one node on two machines": (
        {"outbound": {"egress": {"mode": "hostNetwork", "hosts": [HOSTS[0], dict(HOSTS[1], node=21)]}}},
        "outbound.egress.hosts: two machines have the same `node`",
    ),
    "the host network unseen": (
        {"outbound": {"egress": {"mode": "hostNetwork", "hosts": HOSTS}}},
        "networkPolicy.hostNetworks: missing",
    ),
    "machines without their network": ({"outbound": {"egress": {"hosts": HOSTS}}}, "outbound.egress.hosts: has no effect with `mode: pod`"),
    "a password in values": (
        {"policy": {"inline": {"credentials": [dict(CREDENTIAL, password="hunter2")]}}},
        "policy.inline.credentials: `app` has `password`, which anyone who reads the release's values would see",
    ),
    "a key in values": (
        {"policy": {"inline": {"credentials": [dict(CREDENTIAL, api_key="hunter2")]}}},
        "policy.inline.credentials: `app` has `api_key`",
    ),
    "metrics twice": (
        {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        "monitoring: podMonitor and serviceMonitor would both read every pod",
    ),
    "a test of a port that is off": (
        {"test": TEST, "ingress": {"ports": {"submission": {"port": 0}, "submissions": {"port": 0}}}},
        "test.to: the message of `helm test` is submitted, and ingress.ports.submission and submissions are 0",
    ),
    "a test of nobody": ({"test": {"to": "you@example.net"}}, "test.credentialsSecret: missing"),
}
