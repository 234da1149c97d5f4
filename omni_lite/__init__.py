"""Baichuan-Omni-1.5 rebuilt from its parts: hear, see, think and speak, trained on a laptop

Modules:

- `omni_lite.fetch`: Pinned packages that training data and judges come from: name, version, hash, licence and credit, fetched by pip or npm."""

__version__ = "0.1.0"
