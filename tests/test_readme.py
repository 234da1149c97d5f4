"""The README: its figures are the report card's, its links and files exist, its example runs."""
import re

import pytest

from omni_lite.paths import root
from omni_lite.readme import BEGIN, END, card_tables

README = (root()/'README.md').read_text()

def test_card_is_the_reports():
    block = README.split(BEGIN)[1].split(END)[0].strip()
    assert block == card_tables(root()/'checkpoints'/'nano'/'report.md')

@pytest.mark.parametrize('link', sorted(set(re.findall(r'\]\((?!https?:)([^)#]+)\)', README))))
def test_local_links(link): assert (root()/link).exists()

@pytest.mark.parametrize('name', sorted(set(re.findall(r'`(\d\d[a-z]?_[a-z_]+)`', README))))
def test_notebooks_named_exist(name): assert (root()/'nbs'/f'{name}.ipynb').exists()

def test_every_notebook_is_on_the_map():
    missing = [p.stem for p in (root()/'nbs').glob('*.ipynb') if p.stem not in README]
    assert not missing

def test_the_python_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(root())
    code = re.search(r'```python\n(.*?)```', README, re.S)[1]
    exec(code, {})
    assert 'done' in capsys.readouterr().out
