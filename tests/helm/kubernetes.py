"""The part of the Kubernetes API that pods of the chart use: creating objects, with the rights of their service account."""

import base64
import datetime
import http.server
import ipaddress
import json
import ssl
import threading
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KINDS = {"secrets": "Secret", "configmaps": "ConfigMap"}


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class Authority:
    """A CA: that of the API, that of ingress, or that of the nodes."""

    def __init__(self, name, *uris):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(self.name, self.key).add_extension(x509.BasicConstraints(True, None), True)
        if uris:
            uris = [x509.UniformResourceIdentifier(uri) for uri in uris]
            certificate = certificate.add_extension(x509.SubjectAlternativeName(uris), False)
        self.certificate = certificate.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _build(self, subject, key):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=30))
        )

    def issue(self, *names, uris=()):
        """Returns the certificate and the key for these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names[:1]])
        builder = self._build(subject, key).add_extension(x509.SubjectAlternativeName(alternatives), False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), pem(key)


class Api:
    """Objects by kind and name, and the server that creates them."""

    def __init__(self, address, directory, namespace):
        self.address, self.namespace = address, namespace
        self.objects, self.tokens, self.refused = {}, {}, []
        self.authority = Authority("kubernetes")
        certificate, key = self.authority.issue(address)
        paths = [directory / "api.pem", directory / "api.key"]
        for path, text in zip(paths, (certificate, key)):
            path.write_text(text)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        server = http.server.ThreadingHTTPServer((address, 443), Requests)
        server.api, server.daemon_threads = self, True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def apply(self, item):
        self.objects[item["kind"], item["metadata"]["name"]] = item

    def get(self, kind, name):
        return self.objects.get((kind, name))

    def delete(self, kind, name):
        self.objects.pop((kind, name), None)

    def token(self, account):
        """A token for a service account, which must exist."""
        if self.get("ServiceAccount", account) is None:
            raise KeyError(f"service account {account} does not exist")
        token = uuid.uuid4().hex
        self.tokens[token] = account
        return token

    def may(self, account, verb, resource):
        for kind, name in list(self.objects):
            binding = self.objects[kind, name]
            if kind != "RoleBinding" or account not in [s["name"] for s in binding["subjects"]]:
                continue
            for rule in self.get("Role", binding["roleRef"]["name"])["rules"]:
                if verb in rule["verbs"] and resource in rule["resources"]:
                    return True
        return False

    def create(self, token, namespace, resource, item):
        account = self.tokens.get(token)
        if account is None:
            return 401, status("Unauthorized", "the token is not known")
        if namespace != self.namespace or not self.may(account, "create", resource):
            self.refused.append((account, resource))
            return 403, status("Forbidden", f"{account} cannot create {resource} in {namespace}")
        key = item["kind"], item["metadata"]["name"]
        if item["kind"] != KINDS[resource]:
            return 400, status("BadRequest", "the kind is not the resource's")
        if key in self.objects:
            return 409, status("AlreadyExists", f'{resource} "{key[1]}" already exists')
        if "stringData" in item:
            item["data"] = {k: base64.b64encode(v.encode()).decode() for k, v in item.pop("stringData").items()}
        self.objects[key] = item
        return 201, item


def status(reason, message):
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers in JSON, without a log."""

    def answer(self, code, value):
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Requests(Answering):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        parts = self.path.strip("/").split("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if parts[:3] == ["api", "v1", "namespaces"] and len(parts) == 5 and parts[4] in KINDS:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            code, answer = self.server.api.create(token, parts[3], parts[4], body)
        else:
            code, answer = 404, status("NotFound", "no such path")
        self.answer(code, answer)
