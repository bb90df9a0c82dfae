"""Hold the protos and the code generated from them (`tools/generate_proto.py`). Never edited."""
