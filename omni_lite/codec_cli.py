"""`omni-lite codec`: sound to a small file of codes and back, a report of what the codes keep, and the codec's training.

Torch and everything heavy is imported inside the commands, so that `--help` stays quick."""
import json, os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from omni_lite.paths import shipped

__all__ = ['CODES', 'STAGES', 'add_commands', 'codec_stages', 'train_codec']

CODES = '.codes.safetensors'  # what a file of codes is called
STAGES = ('tokenizer', 'flow', 'vocoder')

# ---- training

def _language_model(folder):
    "Text tokenizer, config and weights of a checkpoint's language model."
    from omni_lite.omni.codec import read_config, read_weights
    from transformers import PreTrainedTokenizerFast
    folder = Path(folder)
    weights = {k[4:]: v.float() for k, v in read_weights(folder/'model.safetensors').items() if k.startswith('llm.')}
    return PreTrainedTokenizerFast.from_pretrained(folder), read_config(folder).llm, weights

def _new_model(preset, world, seed, llm):
    "A model with a fresh codec; its language model is frozen in these stages, and random where none is given."
    import torch
    from omni_lite.config import preset as get_preset, replace
    from omni_lite.layers import misfit
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.omni.processor import OmniProcessor
    from omni_lite.train.trainer import new_model
    if llm is None: return new_model(preset, world, seed)
    tok, sizes, weights = _language_model(llm)
    cfg = replace(get_preset(preset), llm=sizes)
    torch.manual_seed(seed)
    model = OmniForCausalLM(cfg)
    if wrong := misfit(model.llm.state_dict(), weights):
        raise ValueError(f'{Path(llm)/"model.safetensors"} {wrong}: take another checkpoint, or --llm none.')
    model.llm.load_state_dict(weights)
    return model, OmniProcessor(tok, cfg)

def codec_stages(
    preset:str='nano', # with a recipe
) -> list: # of Stage, shares summing to 1
    "The three stages of the recipe that make a codec."
    from dataclasses import replace
    from omni_lite.train.stages import recipe
    rows = [s for s in recipe(preset) if s.name in STAGES]
    if not rows: raise ValueError(f'the recipe of {preset} takes its codec as given: train the codec of nano or lite.')
    total = sum(s.share for s in rows)
    return [replace(s, share=s.share/total) for s in rows]

def _same_run(out, plan, resume):
    "Start a run's folder anew, or make sure that the run in it is this one."
    from omni_lite.omni.codec import ready, whole
    file = ready(out)/'run.json'
    if not resume:
        from omni_lite.train.trainer import start_anew
        start_anew(out)
        with whole(file) as part: part.write_text(json.dumps(plan, indent=1) + '\n')
        return
    if not file.is_file(): raise FileNotFoundError(f'{out} holds no run of `codec train` to resume: leave --resume out.')
    past = json.loads(file.read_text())
    if odd := [k for k in plan if past.get(k) != plan[k]]:
        raise ValueError(f'the run in {out} was started with --{odd[0]} {past.get(odd[0])}, not {plan[odd[0]]}: '
                         'ask for the same, or name another folder with --out.')

def _save_codec(model, out):
    "config.json and codec.safetensors: what a codec needs, and nothing of the language model."
    import tempfile
    with tempfile.TemporaryDirectory(dir=out, prefix='.save-') as tmp:
        model.save_pretrained(tmp)
        for name in ('codec.safetensors', 'config.json'): os.replace(Path(tmp)/name, out/name)

def train_codec(
    out:Path, # folder of state, log and checkpoint
    seconds:float=900., # of training
    preset:str='nano', # rung
    world:str='small', # whose speech is learned
    llm:Path|None=None, # checkpoint whose frozen language model gives the transcript loss; None: without that loss
    resume:bool=False, # go on with the run in `out`
    seed:int=0, # of weights and data
    steps:int=0, # steps per stage instead of seconds
    store=None, # SpeechStore; None: that of the world, built when it is not there
    progress:bool=True, # show bars
) -> Path: # the folder, for `load_codec`
    "Train tokenizer, flow decoder and vocoder, in this order."
    from omni_lite.data.world import World
    from omni_lite.omni.codec import whole
    from omni_lite.train.codec import set_statistics
    from omni_lite.train.trainer import Workshop, run_recipe, world_store
    out, stages = Path(out), codec_stages(preset)
    if llm is not None and not (Path(llm)/'model.safetensors').is_file():
        raise FileNotFoundError(f'{llm} is not a folder with a checkpoint to take the language model from.')
    _same_run(out, dict(preset=preset, world=world, llm=str(llm) if llm else 'none', seed=seed), resume)
    made = World(world, seed)
    store = world_store(world, seed) if store is None else store
    model, proc = _new_model(preset, made, seed, llm)
    set_statistics(model.tokenizer, model.flow, model.vocoder, store)
    shop = Workshop(model, proc, made, store, seed, dictate=llm is not None, progress=progress)
    results = run_recipe(shop, stages, seconds, steps, out)
    _save_codec(model, out)
    for r in results: r.pop('text_loss', None)  # of a language model that these stages do not touch
    past = dict(preset=preset, budget=seconds, world=world, seed=seed, llm=llm is not None, stages=results)
    with whole(out/'stages.json') as part: part.write_text(json.dumps(past, indent=1) + '\n')
    return out

# ---- the commands

def _beside(path, old, new):
    "The same name with another ending."
    name = path.name
    return path.with_name((name[:-len(old)] if old and name.endswith(old) else path.stem) + new)

def _file(path):
    if path.is_dir(): raise ValueError(f'{path} is a folder: name one file.')
    if not path.is_file(): raise FileNotFoundError(f'{path} does not exist.')
    return path

def _other(out, path):
    if out.exists() and out.samefile(path): raise ValueError(f'{out} is the file that is read: name another one with --out.')
    return out

Model = Annotated[Optional[Path], typer.Option(help='folder of a checkpoint; default: the one that ships')]
File = Annotated[Path, typer.Argument(metavar='FILE')]
Out = Annotated[Optional[Path], typer.Option(help='file to write; default: beside FILE')]
Levels = Annotated[Optional[int], typer.Option(min=1, help='only the first so many levels')]

def _codec(model):
    "The codec of a checkpoint, or of the one that ships."
    path = Path(model) if model else shipped()
    if not path.is_dir():
        cure = 'name one with --model' if model else 'train one with `omni-lite codec train`, or name one with --model'
        raise FileNotFoundError(f'no checkpoint lies in {path}: {cure}.')
    from omni_lite.omni.codec import load_codec
    return load_codec(path), path

def encode(file:File, out:Out=None, model:Model=None, levels:Levels=None,
           note:Annotated[str, typer.Option(help='text to keep in the file')]=''):
    "Write the codes of a recording: 12.5 frames of 8 small integers for each second."
    out = _other(out or _beside(_file(file), '', CODES), _file(file))
    from omni_lite.omni.codec import encode_file
    m, _ = _codec(model)
    got = encode_file(m, file, out, levels, note)
    print(f"{out}: {got['frames']:,} frames of {got['levels']} codes for {got['seconds']:.1f} s, "
          f"{got['bps']:.0f} bits per second, {got['bytes']:,} bytes")

def decode(file:File, out:Out=None, model:Model=None, levels:Levels=None,
           flow:Annotated[bool, typer.Option('--flow/--no-flow', help='sharpen the mel with the flow decoder')]=True, seed:int=0):
    "Write the sound of a file of codes."
    out = _other(out or _beside(_file(file), CODES, '.decoded.wav'), _file(file))
    from omni_lite.omni.codec import decode_file
    m, _ = _codec(model)
    got = decode_file(m, file, out, levels, flow, seed)
    print(f"{out}: {got['seconds']:.1f} s from {got['frames']:,} frames of {got['levels']} codes")

def _numbers(text):
    try: ks = tuple(sorted({int(k) for k in text.split(',')}))
    except ValueError: ks = ()
    if not ks or ks[0] < 1: raise ValueError(f'{text!r} is not a list of numbers of levels: write it like 1,2,4,6,8.')
    return ks

def report(
    folder:Annotated[Optional[Path], typer.Argument(help='recordings, with their words in .txt beside; default: '
                                                         'held-out sentences of the world')]=None,
    model:Model=None,
    out:Annotated[Path, typer.Option(help='folder for codec.html, codec.md and codec.json')]=Path('runs/codec-report'),
    clips:Annotated[int, typer.Option(min=1, help='recordings at most')]=20,
    levels:Annotated[str, typer.Option(help='numbers of levels')]='1,2,4,6,8',
    judges:Annotated[str, typer.Option(help='of wer, mos, stoi, pesq, those wanted; or none')]='wer,mos,stoi,pesq',
    world:Annotated[str, typer.Option(help='small or full, where no folder is named')]='small',
    kind:Annotated[str, typer.Option(help='answer: the output voice; question: input voices never heard in training')]='answer',
    seed:Annotated[int, typer.Option(help='of the world')]=0,
):
    "Measure the codec level by level beside the original, copy-synthesis, Griffin-Lim and Opus."
    ks, wanted = _numbers(levels), _judges(judges)
    if kind not in ('answer', 'question'): raise ValueError(f"--kind {kind} is unknown: choose answer or question.")
    if world not in ('small', 'full'): raise ValueError(f"--world {world} is unknown: choose small or full.")
    if folder and not folder.is_dir(): raise FileNotFoundError(f'{folder} is not a folder of recordings.')
    m, at = _codec(model)
    from omni_lite.evaluate.codec import codec_report, folder_clips
    if folder: some, more, where = folder_clips(folder, clips), [], f'the folder {folder.resolve().name}'
    else: some, more, where = _held_out(world, seed, kind, clips)
    hear = 'judge' if 'wer' in wanted else None
    codec_report(m, some, out, ks, tuple(w for w in wanted if w != 'wer'), hear, more, where, at)
    print((out/'codec.md').read_text(encoding='utf8').split('## Quoted')[0].strip())
    print(f'\n{out/"codec.html"} has players, the curve, and what others published.')

def _judges(text):
    names = () if text.strip() == 'none' else tuple(t.strip() for t in text.split(','))
    if odd := [n for n in names if n not in ('wer', 'mos', 'stoi', 'pesq')]:
        raise ValueError(f'there is no judge {odd[0]!r}: choose of wer, mos, stoi, pesq, or none.')
    return names

def _held_out(world, seed, kind, clips):
    import numpy as np
    from omni_lite.evaluate.codec import store_clips
    from omni_lite.train.trainer import world_store
    store = world_store(world, seed)
    idx = [i for i in store.where(split='test', kind=kind)][:300]
    more = [np.asarray(store[i]['wav'], np.float32).ravel()/32767 for i in idx]
    voice = 'the output voice' if kind == 'answer' else 'voices never heard in training'
    return store_clips(store, clips, kind), more, f'{voice} (held-out sentences of the {world} world)'

def train(
    budget:Annotated[str, typer.Option(help='time to train: 15m, 3h, 900s')]='15m',
    out:Annotated[Path, typer.Option(help='folder for checkpoint, state and log')]=Path('runs/codec'),
    preset:Annotated[str, typer.Option(help='size of the model')]='nano',
    world:Annotated[str, typer.Option(help='small or full: whose speech is learned')]='small',
    llm:Annotated[str, typer.Option(help='shipped, a folder, or none: the frozen language model of the transcript loss')]='shipped',
    resume:Annotated[bool, typer.Option('--resume', help='go on where the run in --out stopped')]=False,
    seed:int=0,
):
    "Train the codec alone: tokenizer, flow decoder, vocoder."
    seconds = _parse_budget(budget)
    if world not in ('small', 'full'): raise ValueError(f"--world {world} is unknown: choose small or full.")
    if resume and not out.is_dir(): raise FileNotFoundError(f'{out} does not exist, so there is nothing to resume: leave --resume out.')
    teacher = None if llm == 'none' else shipped() if llm == 'shipped' else Path(llm)
    if llm == 'shipped' and not (shipped()/'model.safetensors').is_file():
        raise FileNotFoundError(f'no language model lies in {shipped()}: name a checkpoint with --llm, or say --llm none.')
    at = train_codec(out, seconds, preset, world, teacher, resume, seed)
    print(f'{at}: try it with `omni-lite codec report --model {at}`')

def _parse_budget(text): raise ValueError('add_commands was not given a function that reads a budget of time.')

def add_commands(
    app:typer.Typer, # the command line's own
    parse_budget:Callable, # text like '15m' -> seconds; handed in, since this module must not import the command line
) -> None:
    "Put `codec` and its commands into a command line."
    global _parse_budget
    _parse_budget = parse_budget
    codec = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help='Sound to codes and back: encode, decode, report, train.')
    for command in (encode, decode, report, train): codec.command()(command)
    app.add_typer(codec, name='codec')
