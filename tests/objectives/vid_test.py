"""VID against published and hand-made numbers."""


import pytest

pytestmark = pytest.mark.usefixtures('quick_compilation')
