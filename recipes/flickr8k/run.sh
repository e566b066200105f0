#!/usr/bin/env bash
# From JPEGs and captions to retrieval on Flickr8k, with the commands that a user has.
#
#   recipes/flickr8k/run.sh DATA OUT
#
# DATA holds flickr8k/captions.tsv, flickr8k/images/ and weights/mobilenet_v2_tf_fp16.npz; OUT is a folder to write.
# The epoch is not chosen on the validation split (--val none), because that split is what is measured.
set -euo pipefail
data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
export MOBILENET=$data/weights/mobilenet_v2_tf_fp16.npz

fusemix extract "$data/flickr8k/captions.tsv" --root "$data/flickr8k/images" \
  --image "image=$here/mobilenet.py:encode" --text caption=minilm --pooling text=mean -o "$out/latents"
fusemix fit "$out/latents" --val none -o "$out/model"
fusemix evaluate "$out/model" "$out/latents" --split val --report "$out/report.html"
fusemix index "$out/model" "$out/latents" --split val -o "$out/index"
fusemix search "$out/index" "a dog jumps over a hurdle" -k 3
