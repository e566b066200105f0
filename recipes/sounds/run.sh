#!/usr/bin/env bash
# From OGG files and captions to audio-text retrieval on clips of ESC-50, with the commands that a user has.
#
#   recipes/sounds/run.sh DATA OUT
#
# DATA holds esc/sounds.tsv (columns file, caption, label, source_id), esc/audio/ and weights/yamnet.tflite; OUT is a folder to write.
# Clips cut from one recording (source_id) stay in one split.
set -euo pipefail
data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
export YAMNET=$data/weights/yamnet.tflite

fusemix extract "$data/esc/sounds.tsv" --sound "file=$here/yamnet.py:encode" --text caption=minilm --pooling text=mean --group source_id \
  -o "$out/latents"
fusemix fit "$out/latents" -o "$out/model"
fusemix evaluate "$out/model" "$out/latents"
fusemix index "$out/model" "$out/latents" --modality sound -o "$out/index"
fusemix search "$out/index" "a dog barks" -k 3
python "$here/table.py" "$out/latents"
