"""Baichuan-Omni-1.5 rebuilt from its parts: hear, see, think and speak, trained on a laptop

Modules:

- `omni_lite.bench`: Timings of our parts against an anchor that does the same work another way.
- `omni_lite.benches.latency`: A spoken answer of the shipped checkpoint: when the first sound leaves, what the whole costs, and what a later turn costs.
- `omni_lite.cli`: The command `omni-lite`. Every import of something heavy lies inside the command that needs it, so `--help` is quick.
- `omni_lite.doctor`: Says what is wrong with this installation and the cure. `python -m omni_lite.doctor --repair` mends what it can. `--model FOLDER` examines a model instead: the checks of omni_lite.evaluate.checkup.
- `omni_lite.fetch`: Pinned packages that training data and judges come from: name, version, hash, licence and credit, fetched by pip or npm.
- `omni_lite.omni.hub`: The model as Hugging Face code expects it: a config class with a `model_type`, the Auto classes, and the hub.
- `omni_lite.plan`: What a rung weighs, what training it takes, and what a file costs.
- `omni_lite.serve.engine`: The engine behind the pages: one object that answers, one answer at a time, and a door that user files pass first."""

__version__ = "0.1.0"

def __getattr__(name): # the model's three classes, at their first use: torch and transformers come in then
    if name not in ('OmniConfig', 'OmniForCausalLM', 'OmniProcessor'): raise AttributeError(f'omni_lite has no {name}')
    from omni_lite.omni import hub
    return getattr(hub, name)
