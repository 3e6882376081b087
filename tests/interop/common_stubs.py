"""Stubs of the submission service, generated from /proto."""

import importlib
import os
import sys

from grpc_tools import protoc
import grpc_tools

STUBS = os.path.join(os.environ["WORK"], "stubs")
os.makedirs(STUBS, exist_ok=True)
PROTO = "postroad/submission/v1/submission.proto"
WELL_KNOWN = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
arguments = ["", f"-I{os.environ['PROTO']}", f"-I{WELL_KNOWN}", f"--python_out={STUBS}", f"--grpc_python_out={STUBS}"]
assert protoc.main([*arguments, PROTO]) == 0
sys.path.insert(0, STUBS)
pb = importlib.import_module("postroad.submission.v1.submission_pb2")
stubs = importlib.import_module("postroad.submission.v1.submission_pb2_grpc")
