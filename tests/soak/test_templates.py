"""`make soak`: costly chat templates, each of which ends within its limits."""

import pytest
from costly_templates import check_ends

from glassformer.text.chat.render_process import TemplateRenderer


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_costly_templates_end(request):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("long test: run make soak")
    renderer = TemplateRenderer(cpu_seconds=0.2)
    ends = check_ends(renderer, seed=1, count=2_000)
    renderer.close()
    print(dict(ends))
    assert set(ends) >= {"rendered", "error", "processor time", "memory"}
