from conftest import failure, load_tool

tool = load_tool('list_recipes')


def test_without_a_checkout_there_is_nothing_to_write_to(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'RECIPES', tmp_path)
    assert '--write is for a checkout of timm_rs' in failure(tool, capsys, '--write')
