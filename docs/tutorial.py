# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From five photographs to masks of a thousand
#
# We show the model five photographs of people, check their masks, segment a folder, and look
# inside. Start this notebook in a clone of the repository, after `pip install '.[docs]'`. It runs
# on a CPU.

# %%
import tempfile
from pathlib import Path

from PIL import Image

from hdmnet import Augment, Box, HDMNet, load_mask

here = Path.cwd()
data = next(x for x in (here, *here.parents) if (x / "examples").is_dir()) / "examples" / "data"
model = HDMNet.from_pretrained("hdmnet-lite0").fused()


def strip(pictures, height=160):
    """Show pictures side by side."""
    small = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    row = Image.new("RGB", (sum(p.width + 4 for p in small), height), "white")
    for i, picture in enumerate(small):
        row.paste(picture, (sum(p.width + 4 for p in small[:i]), 0))
    return row


# %% [markdown]
# ## Five supports
#
# Each photograph has a mask: 255 on the person, 0 elsewhere.

# %%
supports = [data / "person" / f"support_{i}.jpg" for i in range(1, 6)]
masks = [path.with_suffix(".png") for path in supports]
strip([Image.open(path) for path in [*supports, *masks]][i] for i in (0, 5, 1, 6, 2, 7, 3, 8, 4, 9))

# %% [markdown]
# ## Do the masks fit?
#
# `rate_supports` lets every support segment the others. We spoil one mask, and it comes last.

# %%
spoilt = load_mask(masks[3])
spoilt = 1 - spoilt  # the background in place of the person
ratings = model.rate_supports(supports, [*masks[:3], spoilt, masks[4]])
for rating in ratings:
    print(f"support {rating.index + 1}: {rating.agreement:.2f}")
assert ratings[-1].index == 3

# %% [markdown]
# ## Encode once, segment often
#
# The encoded class is a small file. `predict` takes one image or a list, `predict_iter` any number.

# %%
person = model.encode_supports(supports, masks)
queries = [data / "person" / f"query_{i}.jpg" for i in (1, 2)]
answers = model.predict(queries, person)
strip(answer.overlay(path) for path, answer in zip(queries, answers))

# %% [markdown]
# One support instead of five also takes a part of the furnace for a person. More supports are the
# best remedy.

# %%
one = model.encode_supports(supports[0], masks[0])
strip(model.predict(path, one).overlay(path) for path in queries)

# %% [markdown]
# ## Is there any at all?
#
# `presence` is the probability that the image shows the class. A fish is no person.

# %%
for path in [*queries, data / "fish" / "query_1.jpg", data / "rocket" / "query_1.jpg"]:
    answer = model.predict(path, person)
    print(
        f"{path.parent.name}: presence {answer.presence:.2f}, area {answer.mask.float().mean():.1%}"
    )

# %% [markdown]
# ## A box instead of a mask
#
# The model makes a mask of the box, and uses it as a support.

# %%
box = Box(78, 14, 344, 316)  # x0, y0, x1, y1 in pixels
quick = model.pseudo_mask(supports[0], box)
made = Image.fromarray(255 * quick.numpy())
by_box = model.predict(queries[0], supports[0], box)
strip([Image.open(supports[0]), made, by_box.overlay(queries[0])])

# %% [markdown]
# ## Several classes
#
# A dict of classes gives one map. Each pixel belongs to the most probable class.

# %%
fish = model.encode_supports(data / "fish" / "support_1.jpg", data / "fish" / "support_1.png")
both = {"person": person, "fish": fish}
shown = [queries[0], data / "fish" / "query_2.jpg"]
strip(model.predict(path, both).overlay(path) for path in shown)

# %% [markdown]
# ## A folder of a thousand
#
# Here are only a few photographs, but the loop is the same: it reads one after the other, leaves
# out what is done, and a damaged file loses only its own answer. From the shell, that is
# `hdmnet segment photos --class person=person.safetensors --out masks`.

# %%
out = Path(tempfile.mkdtemp())
photos = sorted(data.glob("*/query_*.jpg"))
names = [f"{path.parent.name}-{path.stem}.png" for path in photos]
todo = [(path, name) for path, name in zip(photos, names) if not (out / name).exists()]
for (_, name), answer in zip(todo, model.predict_iter([path for path, _ in todo], person)):
    if isinstance(answer, Exception):
        print(name, answer)
    else:
        answer.save(out / name)  # also an empty mask: then it counts as done
print(*sorted(path.name for path in out.iterdir()), sep="\n")

# %% [markdown]
# ## A little better, for more time

# %%
better = model.predict(queries, person, augment=Augment(), refine=True)
strip(answer.overlay(path) for path, answer in zip(queries, better))

# %% [markdown]
# ## Why this answer?
#
# The priors show where the query resembles the object at all. The correlation maps show where each
# stage of the matching sees it, coarse to fine. [How it works](how-it-works.md) explains them.

# %%
answers[0].explain().picture()

# %% [markdown]
# Next: [your own data](own-data.md), [absent objects](absent.md), [many images](many-images.md).
