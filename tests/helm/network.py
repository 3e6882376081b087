"""The network of the pods: a bridge, addresses, names, and Services as a proxy in the place of kube-proxy.

Everything is in the network namespace of the test, which has no way out.
"""

import itertools
import random
import shlex
import socket
import socketserver
import subprocess
import threading

import dnslib
import dnslib.server

GATEWAY = "10.88.0.1"
# A public address, since outbound refuses to send to others. It exists in this namespace only.
RECEIVER = "11.22.33.44"


def sh(command, check=True):
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout


class Names(dnslib.server.BaseResolver):
    """Names of Services and pods, and the MX of every other domain."""

    def __init__(self):
        self.addresses = {}

    def resolve(self, request, handler):
        reply = request.reply()
        name, kind = str(request.q.qname).rstrip(".").lower(), dnslib.QTYPE[request.q.qtype]
        known = self.addresses.get(name)
        if known is not None:
            for address in known() if kind == "A" else []:
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=1))
        elif name.endswith("cluster.local"):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        elif name == "mx.receiver.example":
            if kind == "A":
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(RECEIVER), ttl=60))
        elif name.count(".") == 1:
            if kind == "MX":
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.MX, rdata=dnslib.MX("mx.receiver.example"), ttl=60))
        else:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        return reply


class Network:
    def __init__(self):
        # The names of network namespaces are files; these are of this test alone.
        sh("mkdir -p /run/netns")
        sh("mount -t tmpfs tmpfs /run/netns")
        sh("ip link set lo up")
        sh("ip link add br0 type bridge")
        sh(f"ip addr add {GATEWAY}/16 dev br0")
        sh("ip link set br0 up")
        sh(f"ip addr add {RECEIVER}/32 dev lo")
        self.hosts = itertools.count(2)
        self.services = itertools.count(1)
        self.names = Names()
        for tcp in (False, True):
            server = dnslib.server.DNSServer(self.names, address=GATEWAY, port=53, tcp=tcp, logger=dnslib.server.DNSLogger(logf=lambda _: None))
            server.start_thread()

    def pod(self):
        """Makes the namespace of a pod, or of a machine; returns its address and the name of the namespace."""
        number = next(self.hosts)
        address, space = f"10.88.{number // 250}.{number % 250 + 2}", f"pod{number}"
        sh(f"ip netns add {space}")
        sh(f"ip link add v{space} type veth peer name eth0 netns {space}")
        sh(f"ip link set v{space} master br0 up")
        for command in ("link set lo up", f"addr add {address}/16 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}"):
            sh(f"ip -n {space} {command}")
        return address, space

    def machine(self, public):
        """Makes a machine with a public address of its own, for pods of the host network; returns what `pod` does."""
        address, space = self.pod()
        sh(f"ip -n {space} addr add {public}/32 dev lo")
        sh(f"ip route add {public}/32 via {address}")
        return address, space

    def remove(self, space):
        sh(f"ip netns del {space}", check=False)

    def service_address(self):
        address = f"10.89.0.{next(self.services)}"
        sh(f"ip addr add {address}/32 dev lo")
        return address


class Proxy(socketserver.ThreadingTCPServer):
    """One port of a Service: each connection goes to one of the ready pods."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address, port, endpoints):
        self.endpoints = endpoints
        super().__init__((address, port), Forward)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Forward(socketserver.BaseRequestHandler):
    def handle(self):
        endpoints = self.server.endpoints()
        if not endpoints:
            return
        try:
            target = socket.create_connection(random.choice(endpoints), timeout=10)
        except OSError:
            return
        target.settimeout(None)
        back = threading.Thread(target=pump, args=(target, self.request), daemon=True)
        back.start()
        pump(self.request, target)
        back.join()
        target.close()


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Receiver(socketserver.ThreadingTCPServer):
    """An MX that takes every message, and keeps it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        self.messages, self.peers = [], set()
        super().__init__((RECEIVER, 25), Reception)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Reception(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self):
        self.say("220 mx.receiver.example ESMTP")
        recipients = []
        for line in self.rfile:
            verb = line.decode("latin-1").strip()
            if verb.upper().startswith("EHLO"):
                self.say("250-mx.receiver.example\r\n250 8BITMIME")
            elif verb.upper().startswith("RCPT"):
                recipients.append(verb)
                self.say("250 ok")
            elif verb.upper() == "DATA":
                self.say("354 go ahead")
                content = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    content.append(line)
                self.server.messages.append((recipients, b"".join(content).decode("latin-1")))
                self.server.peers.add(self.client_address[0])
                recipients = []
                self.say("250 taken")
            elif verb.upper() == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")
