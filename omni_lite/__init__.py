"""Baichuan-Omni-1.5 rebuilt from its parts: hear, see, think and speak, trained on a laptop

Modules:

- `omni_lite.bench`: Timings of our parts against an anchor that does the same work another way.
- `omni_lite.cli`: The command `omni-lite`. Every import of something heavy lies inside the command that needs it, so `--help` is quick.
- `omni_lite.fetch`: Pinned packages that training data and judges come from: name, version, hash, licence and credit, fetched by pip or npm.
- `omni_lite.serve.engine`: The engine behind the pages: one object that answers, one answer at a time, and a door that user files pass first."""

__version__ = "0.1.0"
