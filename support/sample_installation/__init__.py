"""A real Pensieve with sample records, and a small consumer of its database: for demo, molecule and tests.

`python -m sample_installation --help` makes, starts, stops and removes one. The orchestration needs nothing
but Python; `schema`, `records` and `services` run with Pensieve's own interpreter.
"""
