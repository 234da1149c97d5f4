"""Results of `omni-lite eval` beside what others published, as Markdown and as one page that loads nothing from elsewhere.

What others published stands in `QUOTED`, each table with its source; nothing of it was measured here."""
import html, json
from pathlib import Path

from omni_lite.evaluate.page import document, write_whole

__all__ = ['QUOTED', 'results', 'boards', 'markdown', 'page', 'write_leaderboard']

REPORT = 'Baichuan-Omni-1.5 report (arXiv 2501.15368), as its authors ran all models'
AUDIO = 'Baichuan-Audio report (arXiv 2502.17239)'
SPOKEN = f'{REPORT}, and {AUDIO}; spoken question to text, judged by GPT-4o'
OMNI = [('VITA 8x7B', 33.1, 31.8, 42.0, 44.2), ('VITA-1.5', 33.4, 29.6, 48.5, 47.2), ('Baichuan-Omni', 32.2, 26.5, 42.6, 44.2),
        ('MiniCPM-o 2.6', 40.5, 30.8, 53.2, 46.3), ('Baichuan-Omni-1.5', 42.9, 37.7, 47.9, 46.9)]
SETTINGS = ('image-audio', 'caption-audio', 'image-transcript', 'caption-transcript')

QUOTED = {  # runner: (set, source, [(model, per cent)])
    'text-choice': ('MMLU, zero-shot', REPORT, [
        ('GPT-4o', 88.0), ('GPT-4o-mini', 82.0), ('Baichuan-Omni-1.5', 72.2), ('VITA-1.5', 71.0), ('Llama3-Instruct 8B', 67.1),
        ('Baichuan-Omni', 65.3), ('MiniCPM-o 2.6', 65.3)]),
    'image-choice': ('MMBench-EN by VLMEvalKit', REPORT, [
        ('Baichuan-Omni-1.5', 85.6), ('MiniCPM-o 2.6', 83.6), ('GPT-4o', 83.4), ('Qwen2-VL-7B', 81.7), ('VITA-1.5', 80.8),
        ('GPT-4o-mini', 77.7), ('Baichuan-Omni', 76.2)]),
    'video-qa': ('MVBench', REPORT, [
        ('Gemini 1.5 Pro', 81.3), ('Qwen2-VL-7B', 64.4), ('Baichuan-Omni-1.5', 63.7), ('Baichuan-Omni', 60.9),
        ('MiniCPM-o 2.6', 58.6), ('VITA-1.5', 55.5), ('GPT-4o-mini', 55.2)]),
    'openmm-medical': ('OpenMM-Medical', REPORT, [
        ('Baichuan-Omni-1.5', 83.8), ('Qwen2-VL 72B', 80.7), ('Qwen2-VL 7B', 76.9), ('GPT-4o-mini', 74.3),
        ('MiniCPM-o 2.6', 73.6), ('VITA-1.5', 67.1)]),
    'asr': ('LibriSpeech test-clean, WER', 'README of Kimi-Audio, which ran all models again', [
        ('Kimi-Audio', 1.28), ('Qwen2.5-Omni', 2.37), ('Baichuan-Audio-Base', 3.02)]),
    'agreement': ('VocalBench, speech against its own text, WER', 'table of VocalBench', [
        ('Qwen2.5-Omni', 1.15), ('LLaMA-Omni', 2.8), ('SLAM-Omni', 6.1), ('GLM-4-Voice', 11.6), ('MiniCPM-o 2.6', 18.7),
        ('Mini-Omni', 19.6), ('Baichuan-Omni-1.5', 23.5), ('Mini-Omni2', 36.3), ('Kimi-Audio', 38.0)]),
    'openaudiobench-llama': ('OpenAudioBench, Llama Questions', SPOKEN, [
        ('GPT-4o-Audio', 88.4), ('Baichuan-Omni-1.5', 78.5), ('Baichuan-Audio', 78.4), ('MiniCPM-o 2.6', 77.8), ('VITA-1.5', 74.2)]),
    'openaudiobench-web': ('OpenAudioBench, Web Questions', f'{AUDIO}; judged by GPT-4o', [('Baichuan-Audio', 64.5)]),
    'openaudiobench-trivia': ('OpenAudioBench, TriviaQA', f'{AUDIO}; judged by GPT-4o', [('Baichuan-Audio', 61.7)]),
} | {f'omnibench-{name}': (f'OmniBench, {name.replace("-", " and ")}', REPORT, [(m, s[i]) for m, *s in OMNI])
     for i, name in enumerate(SETTINGS)}
ABOUT = ('Quoted rows are other models on the named set. A result of ours compares with them only where its folder holds that '
         'set, whole, and was asked in the same way.')

def results(
    folder:Path, # with files of `omni-lite eval`
) -> list: # of dict, as `run` gives them
    "All results under a folder."
    found = [json.loads(p.read_text(encoding='utf8')) for p in sorted(Path(folder).rglob('*.json'))]
    found = [r for r in found if isinstance(r, dict) and {'runner', 'metric', 'score', 'facts'} <= r.keys()]
    if not found: raise FileNotFoundError(f'{folder} holds no result: make one with `omni-lite eval NAME`')
    return found

def _percent(r, m):
    s = r['scores'][m]
    return f"{s['value']:.2f}" if m == 'mos' or m.startswith('nats') else f"{100*s['value']:.1f} %"

def _own(r):
    "A row of ours: who, score, interval, cases, what else."
    scale, unit = (100, ' %') if not r['metric'].startswith('nats') else (1, '')
    more = ', '.join(f'{m} {_percent(r, m)}' for m in r['scores'] if m != r['metric'])
    if r['failed']: more += f"{', ' if more else ''}{r['failed']} could not be asked"
    facts, sha = r['facts'], r['weights'].get('model.safetensors', '')[:8]
    span = f"{scale*r['low']:.1f} to {scale*r['high']:.1f}{unit}"
    return (f"**{facts['model']}** ({sha})", scale*r['score'], f"{scale*r['score']:.1f}{unit}", span, r['n'], more or '-')

def boards(
    found:list, # of `results`
) -> list: # of dict: name, about, metric, set, source, rows [(model, number, score, interval, cases, notes)], best first
    "A table for each evaluation, ours and the quoted rows together."
    out = []
    for name in sorted({r['runner'] for r in found}):
        mine = [r for r in found if r['runner'] == name]
        title, source, others = QUOTED.get(name.removesuffix('-chat'), ('', '', []))
        rows = [_own(r) for r in mine] + [(m, v, f'{v} %', '', '', f'quoted, {title}') for m, v in others]
        up = mine[0]['metric'] not in ('wer', 'cer') and not mine[0]['metric'].startswith('nats')
        out.append(dict(name=name, about=mine[0]['about'], metric=mine[0]['metric'], set=title, source=source,
                        rows=sorted(rows, key=lambda r: -r[1] if up else r[1])))
    return out

HEAD = ('model', 'score', '95 % interval', 'cases', 'notes')

def markdown(
    some:list, # of `boards`
) -> str:
    "The leaderboard as Markdown."
    line = lambda cells: f"| {' | '.join(str(c).replace('|', '/') for c in cells)} |"
    out = ['# Leaderboard', '', ABOUT, '']
    for b in some:
        out += [f"## {b['name']}", '', f"{b['about']} ({b['metric']})", '', line(HEAD), '|' + '---|'*len(HEAD)]
        out += [line((m, *rest)) for m, _, *rest in b['rows']] + ['']
        if b['source']: out += [f"Quoted: {b['source']}.", '']
    return '\n'.join(out)

def _tr(row, top):
    name, value, *rest = row
    own, esc = name.startswith('**'), html.escape
    cells = f'<td>{esc(name.replace("**", ""))}</td>' + ''.join(f'<td>{esc(str(c))}</td>' for c in rest)
    bar = f'<td><div style="width:{10*min(value, top)/top if top else 0:.2f}em"></div></td>'
    return f'<tr class="{"own" if own else "quoted"}">{cells}{bar}</tr>'

def page(
    some:list, # of `boards`
) -> str: # HTML
    "The leaderboard as one file."
    esc, out = html.escape, []
    for b in some:
        top, head = max(r[1] for r in b['rows']), ''.join(f'<th>{h}</th>' for h in (*HEAD, ''))
        out.append(f"<h2>{esc(b['name'])}</h2><p>{esc(b['about'])} ({esc(b['metric'])})</p><table><tr>{head}</tr>"
                   + '\n'.join(_tr(r, top) for r in b['rows']) + '</table>')
        if b['source']: out.append(f"<p class=\"quoted\">Quoted: {esc(b['source'])}.</p>")
    style = 'td div{height:.8em;background:#9aa5b5}.own{font-weight:600}.own div{background:#e08e45}'
    return document('Leaderboard', f'<p>{esc(ABOUT)}</p>\n' + '\n'.join(out), style)

def write_leaderboard(
    folder:Path, out:Path, # of the results; of the two files
) -> Path: # of the page
    "leaderboard.md and leaderboard.html."
    some = boards(results(folder))
    out.mkdir(parents=True, exist_ok=True)
    write_whole({'leaderboard.md': markdown(some), 'leaderboard.html': page(some)}, out)
    return out/'leaderboard.html'
