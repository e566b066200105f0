#!/usr/bin/env bash
# A dog's bark draws a dog: train a painter of emoji, let sounds land in what conditions it, draw, and measure.
#
#   recipes/sounds_to_emoji/run.sh DATA OUT
#
# DATA holds emoji/, esc/sounds.tsv, latents/esc/ and weights/mobilenet_v2_tf_fp16.npz; OUT is a folder to write.
set -euo pipefail
data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)

python "$here/painter.py" "$data" "$out/painter"
python "$here/table.py" "$data" "$out/painter" "$out/sheet.png"
