"""The coordinator's gRPC service as generated from `consortium.proto`; `make proto` writes it anew."""

from strategies.proto import consortium_pb2, consortium_pb2_grpc

__all__ = ["consortium_pb2", "consortium_pb2_grpc"]
