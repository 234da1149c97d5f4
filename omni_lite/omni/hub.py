"""The model as Hugging Face code expects it: a config class with a `model_type`, the Auto classes, and the hub.

Importing this module registers `OmniConfig`, `OmniForCausalLM` and `OmniProcessor`, so that `AutoConfig`,
`AutoModelForCausalLM`, `AutoModel` and `AutoProcessor` open any checkpoint of ours. `from omni_lite import
OmniForCausalLM` does it, too."""
import json, tempfile
from dataclasses import fields
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, PretrainedConfig

from omni_lite.config import NanoConfig
from omni_lite.omni import generate  # gives the model `chat`, `generate`, `transcribe` and `say`
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor

__all__ = ['OmniConfig', 'OmniForCausalLM', 'OmniProcessor', 'push_to_hub']

PARTS = [f.name for f in fields(NanoConfig)]

class OmniConfig(PretrainedConfig):
    "The sizes of all parts, as transformers wants a config: `config.sizes` is the `NanoConfig`."
    model_type = 'omni_lite'

    def __init__(self,
        sizes:NanoConfig|None=None, # all parts; or the parts by name, as config.json has them
        **kw, # parts, and whatever transformers keeps in a config
    ):
        parts = {k: kw.pop(k) for k in PARTS if k in kw}
        self.sizes = sizes or NanoConfig.from_dict(dict(name='nano', **parts) if 'name' not in parts else parts)
        super().__init__(**kw)
        llm = self.sizes.llm
        self.vocab_size, self.hidden_size, self.num_hidden_layers = llm.vocab_size, llm.dim, llm.layers
        self.num_attention_heads, self.num_key_value_heads = llm.num_heads, llm.kv_heads
        self.max_position_embeddings, self.tie_word_embeddings = llm.max_positions, llm.tie

    def to_dict(self) -> dict: # for config.json
        "Plain values, the parts by name."
        return {k: v for k, v in super().to_dict().items() if k != 'sizes'} | self.sizes.to_dict()

    def to_diff_dict(self) -> dict: # as `to_dict`: every part is written out
        "What config.json holds."
        return self.to_dict()

def _config(self) -> OmniConfig: # of a model
    return OmniConfig(self.cfg, architectures=['OmniForCausalLM'])

def push_to_hub(
    self:'OmniForCausalLM|OmniProcessor', # has `save_pretrained`
    repo_id:str, private:bool=False, # 'user/name'; made when absent
    token:str|None=None, message:str='Upload of omni_lite', # None: the token this machine is logged in with
    api:'HfApi|None'=None, # another hub client
) -> str: # address of the commit
    "Save to a folder and upload it to the Hugging Face hub."
    from huggingface_hub import HfApi
    api = api or HfApi(token=token)
    with tempfile.TemporaryDirectory() as d:
        self.save_pretrained(d)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=d, repo_id=repo_id, commit_message=message))

OmniForCausalLM.config_class, OmniForCausalLM.config = OmniConfig, property(_config)
for c in (OmniForCausalLM, OmniProcessor): c.push_to_hub = push_to_hub

AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForCausalLM): auto.register(OmniConfig, OmniForCausalLM, exist_ok=True)
AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)
