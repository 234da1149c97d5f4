"""A run that is killed goes on exactly: same weights to the last bit, whatever lies on the disk."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omni_lite.train.checkpoint import Checkpoints

RUN = """
import sys, random, torch
from dataclasses import replace
from pathlib import Path
from omni_lite.config import preset
from omni_lite.data.world import World
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer
from omni_lite.train.stages import recipe
from omni_lite.train.trainer import Workshop, run_recipe
torch.set_num_threads(1)
world = World('small'); tok = train_tokenizer(l for l, _ in zip(world.corpus(0), range(500)))
cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)))
torch.manual_seed(0)
shop = Workshop(OmniForCausalLM(cfg), OmniProcessor(tok, cfg), world, None, tokens=256, progress=False)
rows = [s for s in recipe() if s.name in ('lookup', 'lang')]
print('ready', flush=True)
run_recipe(shop, rows, steps=60, out=Path(sys.argv[1]), every=.2)
print('done', flush=True)
"""

def start(out): return subprocess.Popen([sys.executable, '-c', RUN, str(out)], stdout=subprocess.PIPE, text=True)

def weights(out): return load_file(Checkpoints(out/'state').found()[-1]/'model.safetensors')

def steps(out):
    log = out/'log.jsonl'
    return len(log.read_text().splitlines()) if log.exists() else 0

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    assert start(out).communicate(timeout=240)[0].endswith('done\n')
    return out

@pytest.mark.parametrize('lines', [1, 4])
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, lines):
    "kill -9 in the first and in the second stage, and a half-written folder left behind."
    p = start(tmp_path)
    for _ in range(2400):
        if steps(tmp_path) >= lines and Checkpoints(tmp_path/'state').found(): break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode == -signal.SIGKILL
    (tmp_path/'state'/'.99999999.part').mkdir(); (tmp_path/'state'/'.99999999.part'/'model.safetensors').write_bytes(b'half')
    assert start(tmp_path).communicate(timeout=240)[0].endswith('done\n')
    a, b = weights(whole), weights(tmp_path)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path, monkeypatch):
    net, c = torch.nn.Linear(4, 4), Checkpoints(tmp_path)
    c.save(net, step=1)
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(ValueError, match='No space left on device.*make room and go on with --resume'): c.save(net, step=2)
    assert [p.name for p in tmp_path.iterdir()] == ['00000000'] and c.load(net)['step'] == 1

@pytest.mark.parametrize('keep', [1, 3])
def test_the_last_few_stay(tmp_path, keep):
    net, c = torch.nn.Linear(2, 2), Checkpoints(tmp_path, keep)
    for i in range(5): c.save(net, step=i)
    assert [p.name for p in c.found()] == [f'{i:08d}' for i in range(5 - keep, 5)]

def test_tied_weights_come_back_tied(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self): super().__init__(); self.a = torch.nn.Embedding(5, 3); self.b = torch.nn.Linear(3, 5, bias=False); self.b.weight = self.a.weight
    x, y, c = Tied(), Tied(), Checkpoints(tmp_path)
    c.save(x); c.load(y)
    assert torch.equal(y.b.weight, x.a.weight) and y.b.weight is y.a.weight
