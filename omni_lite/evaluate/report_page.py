"""The report card as a page: the table and its picture, answers one can play beside their waterfall, the codec level by level."""
import html, math
from dataclasses import dataclass, field

import numpy as np

from omni_lite.evaluate.judge import wer
from omni_lite.evaluate.page import document, drawing, player, table

__all__ = ['Told', 'spread', 'waterfall', 'stages', 'page']

@dataclass
class Told:
    "One answer as it came."
    question:str; truth:str; text:str # words of the question, of the right answer, of the model's
    sound:np.ndarray # (L,) at 24 kHz, what it said
    timings:dict = field(default_factory=dict) # seconds, with `laps` up to the first sound
    seen:object = None # picture of Pillow
    asked:np.ndarray|None = None # (L,) at 24 kHz, where the question was spoken
    heard:str = '' # what the judge heard
    mos:float = math.nan # DistillMOS of the answer

def spread(
    items:list, n:int, # any; how many at most
) -> list: # in order
    "Some of a list, evenly."
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)

PARTS = ('files', 'eye', 'ear', 'prompt', 'text', 'step', 'frames', 'flow', 'vocoder')

def waterfall(
    told:list, # of Told, with timings
) -> 'Figure':
    "Where the time up to the first sound went, answer by answer."
    from matplotlib.figure import Figure
    some = [t for t in told if t.timings.get('laps')]
    names = sorted({k for t in some for k in t.timings['laps']}, key=lambda k: PARTS.index(k) if k in PARTS else len(PARTS))
    fig = Figure(figsize=(8, .3*len(some) + 1.2), layout='constrained'); ax, left = fig.subplots(), np.zeros(len(some))
    for k in names:
        ms = np.array([1e3 * t.timings['laps'].get(k, 0) for t in some])
        ax.barh(range(len(some)), ms, left=left, label=k); left += ms
    ax.set_yticks(range(len(some)), [t.question[-48:] for t in some], fontsize=7); ax.invert_yaxis()
    ax.set_xlabel('ms after the request'); ax.legend(fontsize=7, ncols=len(names), loc='lower center', bbox_to_anchor=(.5, 1.))
    return fig

def stages(
    past:list, # of the card: dict(stage, seconds, text_loss)
) -> 'Figure':
    "Held-out text loss over the time of training, stage by stage."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(8, 2.4), layout='constrained'); ax = fig.subplots()
    at = np.cumsum([s['seconds'] for s in past]) / 60
    ax.semilogy(at, [s['text_loss'] for s in past], 'o-')
    for x, s in zip(at, past): ax.annotate(s['stage'], (x, s['text_loss']), fontsize=7, xytext=(0, 5), textcoords='offset points')
    ax.set_xlabel('minutes of training'); ax.set_ylabel('text loss')
    return fig

def _ms(t, key): return f'{1e3 * t.timings[key]:.0f} ms' if key in t.timings else ''

def _answer(t): # cells of one answer
    esc, errors = html.escape, wer([t.text], [t.heard]) if t.heard else math.nan
    asked = player(t.asked, f'question: {t.question}') if t.asked is not None else esc(t.question[-90:])
    see = drawing(t.seen, 'what was shown') if t.seen is not None else ''
    good = '' if math.isnan(errors) else f'{100*errors:.0f} %'
    said = player(t.sound, f'answer: {t.text}') if len(t.sound) else ''
    return [see, asked, said, esc(t.text), esc(t.truth), esc(t.heard), good,
            '' if math.isnan(t.mos) else f'{t.mos:.1f}', _ms(t, 'first_sound_s'), f"{t.timings['rtf']:.2f}" if 'rtf' in t.timings else '']

ANSWER = ('seen', 'asked', 'said', 'wrote', 'truth', 'the judge heard', 'WER', 'DistillMOS', 'first sound', 'rtf')
ABOUT = ('Held-out questions, answered aloud. WER: what the judge heard against what the model wrote. DistillMOS marks a short answer '
         'down, since it hears it padded with silence. Players: 16 kHz.')

def page(
    card:dict, picture:bytes, # what report.json holds; report.png
    told:list, copies:list, # of Told; of (way, sound (L,) at 24 kHz) of one sentence through the codec
    most:int=16, # answers shown
) -> str: # HTML
    "The card as one file that needs no network."
    pct, esc, some = lambda v: '' if v is None else f'{100*v:.0f} %', html.escape, spread(told, most)
    rows = [[esc(r['ability']), r['n'], f"{pct(r['score'])} {r['unit']}", f"{pct(r['low'])} to {pct(r['high'])}", pct(r['chance']),
             pct(r['ceiling'])] for r in card['rows']]
    out = ['<p>' + esc(', '.join(f'{k} {v}' for k, v in card['facts'].items())) + '</p>', drawing(picture, 'the card as bars'),
           table(['ability', 'cases', 'score', '95 % interval', 'chance', 'ceiling'], rows)]
    if some: out += [f'<h2>Answers</h2><p>{ABOUT}</p>', table(ANSWER, map(_answer, some), 'answers')]
    if any(t.timings.get('laps') for t in some):
        out += ['<h2>The way to the first sound</h2>', drawing(waterfall(some), 'time up to the first sound by stage')]
    if copies: out += ['<h2>One sentence through the codec</h2>', table(['way', 'sound'], [[esc(k), player(w, k)] for k, w in copies])]
    if card.get('stages'): out += ['<h2>What training did to the text</h2>', drawing(stages(card['stages']), 'text loss by stage')]
    asked = [[esc(f"{e['ability']}: {e['question']}"), esc(e['answer']), esc(e['truth'])] for e in card['examples']]
    out += ['<h2>Asked in writing</h2>', table(['asked', 'answered', 'truth'], asked)]
    return document(f"Report card of {card['facts']['model']}", '\n'.join(out), '.answers img{height:3.5em}')
