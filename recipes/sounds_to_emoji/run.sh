#!/usr/bin/env bash
# A dog's bark draws a dog: train a painter of emoji, let sounds land in what conditions it, draw, and measure.
#
#   recipes/sounds_to_emoji/run.sh DATA OUT
#
# DATA holds emoji/, esc/sounds.tsv, esc/audio/, latents/esc/, weights/mobilenet_v2_tf_fp16.npz and weights/yamnet.tflite;
# OUT is a folder to write.
set -euo pipefail
data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)

python "$here/painter.py" "$data" "$out/painter"
python "$here/table.py" "$data" "$out/painter" "$out/sheet.png"

# The same from sound files, with the commands that a user has.
export YAMNET=$data/weights/yamnet.tflite EMOJI_PAINTER=$out/painter
yamnet=$here/../sounds/yamnet.py:encode
awk -F'\t' -v OFS='\t' -v at="$(realpath "$data")/esc/" 'NR == 1 {print} NR > 1 && $3 == 1 && $2 <= 3 {$1 = at $1; print}' \
  "$data/esc/sounds.tsv" > "$out/heard.tsv"
fusemix extract "$out/heard.tsv" --sound "file=$yamnet" --text caption=minilm --pooling text=mean -o "$out/latents"
fusemix fit "$out/latents" -o "$out/model" --lock text --epochs 40 --set expansion=1
fusemix generate "$out/model" "$data"/esc/audio/4-{183992,125929,156843}-A.ogg -o "$out/drawn.png" \
  --pipeline "$here/painter.py:paint" --encoder "sound=$yamnet" --compare dog

minutes=$((SECONDS / 60)) holds=$([ "$SECONDS" -le 2700 ] && echo true || echo false)
echo "RESULT {\"name\": \"emoji: minutes of the whole recipe\", \"figure\": $minutes, \"target\": \"<= 45\", \"holds\": $holds}"
