// Package checkpoint holds models in memory and on disk: what a model is (a
// Config and named weights), and the folders that trainers write, other
// programs read, and a killed run goes on from.
//
// A model's folder is
//
//	config.json         the Config, in the spelling of Hugging Face transformers
//	model.safetensors   the weights, by the names of Config.Specs, or
//	model.safetensors.index.json and the files it names
//
// and a training run's folder
//
//	step-0000500/       a model's folder with, beside it,
//	  optimizer.safetensors   AdamW's moments and step counts of each weight trained so far:
//	                          <weight>.exp_avg, <weight>.exp_avg_sq (float32), <weight>.step (int64, [1])
//	  trainer.json            the Trainer
//	step-0001000/
//	latest              a symbolic link to the newest whole one
//
// Every folder is written under a temporary name, fsynced and renamed, and
// latest moves after that: whenever the process is killed, latest is whole.
package checkpoint
