"""What the HTML pages of the reports are made of: one file each, players and pictures inside, nothing loaded from elsewhere."""
import base64, html, io, wave
from pathlib import Path

import numpy as np

from omni_lite.audio.mel import EAR_RATE, VOICE_RATE, load_sound
from omni_lite.omni.codec import whole

__all__ = ['STYLE', 'player', 'drawing', 'table', 'document', 'write_whole']

STYLE = '''body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25em .6em;border-bottom:1px solid #8884;
text-align:left;white-space:nowrap}audio{width:13em;height:2em}img{max-width:100%}.quoted{opacity:.75}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}img{background:#fff}}'''

def _wav(x): # (L,) at 24 kHz -> bytes of a 16 kHz WAV
    pcm = (np.clip(load_sound(x, VOICE_RATE).numpy(), -1, 1)*32767).astype('<i2').tobytes()
    with wave.open(out := io.BytesIO(), 'wb') as f:
        f.setnchannels(1); f.setsampwidth(2); f.setframerate(EAR_RATE)
        f.writeframes(pcm)
    return out.getvalue()

def _inside(data, kind): return f'data:{kind};base64,{base64.b64encode(data).decode()}'

def player(
    x:np.ndarray, label:str, # (L,) at 24 kHz; what a screen reader says
) -> str: # HTML
    "A sound that can be played."
    return f'<audio controls preload="none" aria-label="{html.escape(label)}" src="{_inside(_wav(x), "audio/wav")}"></audio>'

def drawing(
    picture:'bytes|Figure|Image', label:str, # a PNG, a figure of matplotlib or a picture of Pillow; what a screen reader says
) -> str: # HTML
    "A picture inside the page."
    if not isinstance(picture, bytes):
        save = getattr(picture, 'savefig', None) or picture.save
        save(out := io.BytesIO(), format='png'); picture = out.getvalue()
    return f'<img alt="{html.escape(label)}" src="{_inside(picture, "image/png")}">'

def table(
    head:list, rows:list, # names of the columns; of lists of cells, HTML
    kind:str='', # class of the table
) -> str: # HTML
    "A table; the names are escaped, the cells are not."
    line = lambda cells, tag: '<tr>' + ''.join(f'<{tag}>{c}</{tag}>' for c in cells) + '</tr>'
    of = f' class="{kind}"' if kind else ''
    return f'<table{of}>' + '\n'.join([line(map(html.escape, head), 'th'), *(line(r, 'td') for r in rows)]) + '</table>'

def document(
    title:str, body:str, more:str='', # of the page; HTML; further style
) -> str: # HTML
    "A page that needs no network."
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
            f'<title>{html.escape(title)}</title><style>{STYLE}{more}</style><h1>{html.escape(title)}</h1>{body}</html>\n')

def write_whole(
    files:dict, out:Path, # name -> text; folder, there already
) -> None:
    "Text files, each complete or not at all."
    for name, text in files.items():
        with whole(out/name) as part: part.write_text(text, encoding='utf8')
