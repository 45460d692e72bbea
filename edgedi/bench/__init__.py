"""What `edgedi-bench` is made of: contenders, one interleaved run of them, numbers from it, tables and the demo."""
