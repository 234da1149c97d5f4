"""`omni-lite eval` asks a model the questions of a set; `omni-lite leaderboard` puts the results beside published ones.

Torch and everything heavy is imported inside the commands, so that `--help` stays quick."""
from pathlib import Path
from typing import Annotated, Optional

import typer

from omni_lite.paths import shipped

__all__ = ['add_commands', 'examinee', 'evaluate_set']

LM_EVAL = 'lm-eval'

def examinee(
    folder:Path, seed:int=0, # of the model; of every answer
) -> 'Examinee':
    "A model from a folder, with the judges that are installed, on the GPU where there is one."
    if not (folder/'config.json').is_file():
        raise FileNotFoundError(f'no checkpoint lies in {folder}: train one with `omni-lite train`, or name one with --model')
    import torch
    from omni_lite.evaluate.codec import rulers
    from omni_lite.evaluate.judge import listen
    from omni_lite.evaluate.runners import Examinee
    from omni_lite.fetch import fetched
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.omni.processor import OmniProcessor
    model = OmniForCausalLM.from_pretrained(folder, device='cuda' if torch.cuda.is_available() else 'cpu')
    hear = listen if fetched('judge') else None
    return Examinee(model, OmniProcessor.from_pretrained(folder), hear, rulers(('mos',))[0].get('mos') if hear else None, seed)

def evaluate_set(
    name:str, folder:Path, data:str|None=None, # of RUNNERS; of the model; folder or hub:USER/SET
    out:Path|None=None, limit:int|None=None, # file of the result, runs/eval/NAME.json; cases at most
    seed:int=0, task:str|None=None, # of every answer; of lm-eval
    progress:bool=True, # show a bar
) -> dict: # what the file holds
    "Run one evaluation."
    from omni_lite.evaluate.runners import run
    from omni_lite.evaluate.sets import RUNNERS, folder_of
    if name != LM_EVAL and name not in RUNNERS:
        raise ValueError(f"there is no evaluation {name!r}: choose one of {', '.join([*RUNNERS, LM_EVAL])}")
    out = out or Path('runs/eval')/f'{name}{f"-{task}" if task else ""}.json'
    if name == LM_EVAL: return _lm_eval(folder, data, out, limit, seed, task)
    runner = RUNNERS[name]
    cases = runner.load(folder_of(data, runner.hub))
    return run(runner, examinee(folder, seed), cases, folder, out, limit, progress)

def _lm_eval(folder, data, out, limit, seed, task):
    import json
    if not task: raise ValueError('lm-eval needs the name of a task: --task arc_easy, or one of your own with --data FOLDER')
    from omni_lite.evaluate.lm_eval_adapter import run_task
    got = run_task(task, examinee(folder, seed), folder, out, Path(data) if data else None, limit)
    out.write_text(json.dumps(got, indent=1, default=str) + '\n')
    return got

# ---- the commands

def _list():
    from omni_lite.evaluate.sets import RUNNERS
    for r in RUNNERS.values(): print(f'{r.name:29} {r.about}{f" (hub: {r.hub})" if r.hub else ""}')
    print(f"{LM_EVAL:29} a task of lm-eval, --task NAME; task files of your own with --data FOLDER")

def evaluate(
    name:Annotated[Optional[str], typer.Argument(help='an evaluation; without it they are listed')]=None,
    model:Annotated[Optional[Path], typer.Option(help='folder of a checkpoint; default: the one that ships')]=None,
    data:Annotated[Optional[str], typer.Option(help='folder of the set, or hub:USER/SET')]=None,
    limit:Annotated[Optional[int], typer.Option(min=1, help='cases at most')]=None,
    out:Annotated[Optional[Path], typer.Option(help='file of the result; default: runs/eval/NAME.json')]=None,
    task:Annotated[Optional[str], typer.Option(help='name of a task, for lm-eval')]=None,
    seed:int=0,
):
    "Ask a model the questions of a set; a run that was stopped goes on."
    if name is None: return _list()
    got = evaluate_set(name, Path(model) if model else shipped(), data, out, limit, seed, task)
    for m, s in got['scores'].items():
        print(f"{m}: {s['value']:.3f} (95 % interval {s['low']:.3f} to {s['high']:.3f}, {s['n']} cases)")
    if got['failed']: print(f"{got['failed']} cases could not be asked; the reason stands in their rows")

def leaderboard(
    results:Annotated[Path, typer.Argument(help='folder with results of `omni-lite eval`')]=Path('runs/eval'),
    out:Annotated[Optional[Path], typer.Option(help='folder for leaderboard.md and leaderboard.html; default: that of the results')]=None,
):
    "Put results beside published ones, on one page."
    from omni_lite.evaluate.leaderboard import write_leaderboard
    print(write_leaderboard(results, out or results))

def add_commands(
    app:typer.Typer, # the command line's own
) -> None:
    "Put `eval` and `leaderboard` into a command line."
    app.command('eval')(evaluate)
    app.command()(leaderboard)
