"""The kinds of file that a network is shipped in, one module each.

Each module has

  SUFFIX: the end of its files' names, with the dot;
  write(deployed, path): writes the file;
  load(path, info): a function from images as the file wants them, any number
    of them, to logits, both NumPy arrays; `info` is the JSON beside the file.

Where `--quantize=int8` is possible, also `write_int8(deployed, path, images)`,
with uint8 images of the train split to calibrate by. A module is imported only
when its format is asked for; one whose library is not installed says in a
`UserError` which extra to install.
"""
