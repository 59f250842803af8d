"""A Space that shows what an adapter sees: put its Hub id, or its folder, into ADAPTER.

ADAPTER=my-adapter python examples/space/app.py
"""

import os

from residual_peft import ZeroShotClassifier
from residual_peft.app.explorer import appearance, explorer

adapter = os.environ.get("ADAPTER", "my-adapter")
demo = explorer(ZeroShotClassifier.from_pretrained(adapter), title=f"What {adapter} sees")

if __name__ == "__main__":
    demo.launch(**appearance())
