"""The trajectory in Python: what travels between the roles, and its bytes.

Thin typed views over `trajectory.proto`. Arrays are raw little-endian bytes with dtype and shape;
no pickle crosses any wire.
"""
