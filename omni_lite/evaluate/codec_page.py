"""The codec's report as files: JSON, Markdown, and one HTML page with players that loads nothing from elsewhere.

What others published stands in `quoted`, each row with its source; nothing of it was measured here."""
import html, io, json, math
from pathlib import Path

from omni_lite.audio.mel import EAR_RATE, TOKEN_SECONDS, VOICE_RATE
from omni_lite.config import preset
from omni_lite.evaluate.page import document, drawing, player, table, write_whole

__all__ = ['ABOUT_QUOTED', 'COLUMNS', 'cell', 'columns', 'quoted', 'markdown', 'curve_picture', 'fitting', 'page', 'write_report']

COLUMNS = dict(way='way', bps='bits/s', entropy_bps='entropy, bits/s', wer='WER', mos='DistillMOS', utmos='UTMOS',
               stoi='STOI', pesq='PESQ', mel='mel error', rtf='real-time factor')
DIGITS = dict(bps='{:,.0f}', entropy_bps='{:,.0f}', pesq='{:.2f}', stoi='{:.2f}', mos='{:.2f}', utmos='{:.2f}')

# ---- what others published

LLASA = 'Llasa paper, Table 1 (arXiv 2502.04128): LibriSpeech test-clean, WER by HuBERT-large'
BAICHUAN = 'Baichuan-Audio report, Tables 1 to 3 (arXiv 2502.17239): LibriSpeech, WER through its own frozen LLM'
LIBRI = 'Baichuan-Audio report (arXiv 2502.17239): LibriSpeech-dev, reconstruction'
ABOUT_QUOTED = ('Other recordings (LibriSpeech) and other judges: compare orders of size and shapes of curves, not single '
                'figures. UTMOS is not DistillMOS, and the scale of the quoted mel error is not stated.')
OTHERS = (  # codec, bits a second (rate x codebooks x log2 of their size), WER in %, STOI, PESQ, UTMOS
    ('EnCodec, 75 Hz x 8', 6000, 2.15, .94, 2.77, 3.09), ('DAC, 50 Hz x 12', 6000, 2.00, .95, 4.01, 4.00),
    ('EnCodec, 75 Hz x 2', 1500, 4.90, .85, 1.56, 1.58), ('Mimi, 12.5 Hz x 8', 1100, 2.96, .91, 2.25, 3.56),
    ('SpeechTokenizer, 50 Hz x 2', 1000, 3.92, .77, 1.25, 2.28), ('DAC, 50 Hz x 2', 1000, 13.27, .73, 1.13, 1.29),
    ('Mimi, 12.5 Hz x 6', 825, 3.61, .89, 1.99, 3.38), ('X-codec2, 50 Hz x 1', 800, 2.47, .92, 2.44, None))
CURVE = {8: (5.3, .466), 6: (5.5, .485), 4: (6.3, .516), 1: (26.2, .677)}  # levels: WER in %, mel error
DECODERS = (('Baichuan, mel decoder', 2.84, 3.43), ('Baichuan, flow', 2.78, 4.05), ('LibriSpeech-dev itself', 2.26, 4.08))

def quoted() -> list: # rows like those of `measure`, with their source
    "What others published."
    share = lambda percent: round(percent/100, 4)
    rate = lambda k: sum(map(math.log2, preset('7b').audio.codebook_sizes[:k]))/TOKEN_SECONDS
    name = lambda k: f'Baichuan, {k} level{"s"[:k > 1]}'
    rows = [dict(way=w, bps=b, wer=share(e), stoi=s, pesq=p, utmos=u, source=LLASA) for w, b, e, s, p, u in OTHERS]
    rows += [dict(way=name(k), levels=k, bps=rate(k), wer=share(e), mel=m, source=BAICHUAN) for k, (e, m) in CURVE.items()]
    return rows + [dict(way=w, wer=share(e), utmos=u, source=LIBRI) for w, e, u in DECODERS]

# ---- tables

def cell(
    row:dict, name:str, # of the report; a key of COLUMNS
) -> str:
    "A value as the tables show it."
    v = row.get(name)
    if v is None: return ''
    if name == 'way': return v
    if name != 'wer': return DIGITS.get(name, '{:.3f}').format(v)
    return f'{100*v:.1f} %' + (f" ({100*row['wer_low']:.0f} to {100*row['wer_high']:.0f})" if 'wer_low' in row else '')

def columns(
    rows:list, # of the report
) -> list: # keys of COLUMNS
    "The columns that have a value."
    return [c for c in COLUMNS if any(r.get(c) is not None for r in rows)]

def _table(head, lines):
    line = lambda cells: f"| {' | '.join(str(c).replace('|', '/') for c in cells)} |"
    return [line(head), '|' + '---|'*len(head), *map(line, lines), '']

def _usage(u): return (u['level'], u['size'], f"{100*u['used']/u['size']:.0f} %", f"{u['perplexity']:.0f}", f"{u['bits']:.2f}")

def markdown(
    card:dict, # see `codec_report`
) -> str:
    "The report as Markdown."
    own, other = columns(card['rows']), columns(card['quoted'])
    out = ['# Codec report', '', card['about'], ''] + [f'- {s}' for s in card['left_out']] + ['']*bool(card['left_out'])
    out += _table([COLUMNS[c] for c in own], [[cell(r, c) for c in own] for r in card['rows']])
    out += ['## Usage of the codes', '', f"Over {card['frames']:,} frames.", '']
    out += _table(('level', 'entries', 'used', 'perplexity', 'bits'), map(_usage, card['usage']))
    out += ['## Quoted, not measured here', '', card['about_quoted'], '']
    out += _table([COLUMNS[c] for c in other] + ['source'], [[cell(r, c) for c in other] + [r['source']] for r in card['quoted']])
    return '\n'.join(out)

# ---- the curve

def _line(ax, rows, name, style, label):
    some = sorted((r['levels'], r[name]) for r in rows if r.get('levels') and r.get(name) is not None)
    if some: ax.plot(*zip(*some), style, label=label)

def _panel(ax, name, card):
    flow = lambda on: [r for r in card['rows'] if r.get('flow') is on]
    _line(ax, flow(True), name, 'o-', 'flow')
    _line(ax, flow(False), name, 's--', 'mel decoder')
    if name == 'wer': _line(ax, card['quoted'], name, '^:', 'Baichuan (quoted)')
    for r, color in zip(card['rows'][:2], ('k', 'tab:green')):
        if r.get(name) is not None and 'levels' not in r: ax.axhline(r[name], color=color, lw=1, label=r['way'])
    ax.set_xlabel('levels'); ax.set_title(COLUMNS[name], fontsize=9)

def curve_picture(
    card:dict, # see `codec_report`
) -> bytes: # PNG
    "WER, DistillMOS and mel error over the number of levels, with flow and without, anchors as lines."
    from matplotlib.figure import Figure
    names = [c for c in ('wer', 'mos', 'mel') if any(r.get(c) is not None for r in card['rows'] if 'levels' in r)]
    fig = Figure(figsize=(3.4*len(names), 2.8))
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names): _panel(ax, name, card)
    axes[0].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(out := io.BytesIO(), format='png', dpi=110)
    return out.getvalue()

# ---- the page

def fitting(
    seconds:list, rows:int, # of the clips; rows of players
    budget:float=3.5e6, # bytes of sound in the page
) -> tuple: # how many clips, seconds of each
    "How much sound a page holds: up to three clips, cut where they are long."
    room = budget/(EAR_RATE*2*4/3)/rows  # seconds of a row
    n = max(1, min(3, len(seconds), int(room // min(2.5, max(seconds)))))
    return n, room/n

def _cells(row, names): return [html.escape(cell(row, c)) for c in names]

def page(
    card:dict, # see `codec_report`
    sounds:dict, clips:list, # way -> sounds at 24 kHz; of Clip
) -> str: # HTML
    "The report as one file."
    n, s = fitting([c.seconds for c in clips], len(sounds))
    shown, esc, own, other = clips[:n], html.escape, columns(card['rows']), columns(card['quoted'])
    play = lambda r: [player(x[:int(s*VOICE_RATE)], r['way'] + ': ' + c.name) for c, x in zip(shown, sounds[r['way']])]
    rows = table([COLUMNS[c] for c in own] + [(c.text or c.name)[:40] for c in shown],
                 [_cells(r, own) + play(r) for r in card['rows']])
    more = table([COLUMNS[c] for c in other] + ['source'], [_cells(r, other) + [esc(r['source'])] for r in card['quoted']],
                 'quoted')
    cut = f'<p>Players: 16 kHz WAV, the first {s:.1f} s.</p>' if max(c.seconds for c in shown) > s else ''
    notes = ''.join(f'<li>{esc(t)}</li>' for t in card['left_out'])
    used = ', '.join(f"{100*u['used']/u['size']:.0f} % of {u['size']}" for u in card['usage'])
    curve = drawing(curve_picture(card), 'word errors, opinion score and mel error over the number of levels')
    return document('Codec report', f'''<p>{esc(card['about'])}</p><ul>{notes}</ul>{curve}
{rows}{cut}<p>Entries in use, level by level, over {card['frames']:,} frames: {used}.</p>
<h2>Quoted, not measured here</h2><p>{esc(card['about_quoted'])}</p>{more}''')

def write_report(
    card:dict, sounds:dict, clips:list, # see `page`
    out:Path, # folder of the files
) -> Path: # of the page
    "codec.json, codec.md and codec.html, each complete or not at all."
    write_whole({'codec.json': json.dumps(card, indent=1, allow_nan=False) + '\n', 'codec.md': markdown(card),
                 'codec.html': page(card, sounds, clips)}, out)
    return out/'codec.html'
