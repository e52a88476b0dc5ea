package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/trainers"
)

// Names of the stages that train, and of their folders.
const (
	nameTeacher    = "teacher"
	namePretrained = "pretrained"
	nameDistilled  = "distilled"
	nameHalf       = "distilled half"
	nameFinetuned  = "finetuned"
)

// rows are the paper's four models, and the stages that each was trained in.
var rows = []struct {
	title  string
	folder string
	stages []string
}{
	{"teacher (attention)", nameTeacher, []string{nameTeacher}},
	{"Hyena pre-trained", namePretrained, []string{namePretrained}},
	{"Hyena distilled by MSE", nameDistilled, []string{nameDistilled}},
	{"Hyena distilled, then CE", nameFinetuned, []string{nameHalf, nameFinetuned}},
}

// report scores the models and writes the run's report.
func (x *experiment) report(ctx context.Context) (report.Run, error) {
	r := report.Run{Title: "Scavenging Hyena: perplexities", Sets: []string{"held-out"}}
	for _, e := range x.Eval {
		r.Sets = append(r.Sets, e.Name)
	}
	for _, row := range rows {
		dir := x.path(folder(row.folder))
		if row.folder == nameTeacher {
			dir = x.teacher
		}
		m, err := x.score(ctx, row.title, row.folder, dir)
		if err != nil {
			return r, err
		}
		for _, s := range row.stages {
			m.Seconds += x.took[s]
			t, err := trained(x.path(folder(s)))
			if err != nil {
				return r, err
			}
			m.Tokens += t
		}
		r.Models = append(r.Models, m)
	}
	set, err := tokenset.Open(x.dataset)
	if err != nil {
		return r, err
	}
	r.Notes, r.Settings = x.notes(r), x.settings(set.Manifest)
	if r.Curves, err = x.curves(); err != nil {
		return r, err
	}
	return r, r.Save(x.Run)
}

// score is a model's perplexity on every text. What was scored before, of the
// same weights on the same texts, is not scored again.
func (x *experiment) score(ctx context.Context, title, name, dir string) (report.Model, error) {
	model, err := trainers.LoadModel("checkpoint", dir)
	if err != nil {
		return report.Model{}, err
	}
	m := report.Model{Name: title, Parameters: model.Config.Parameters()}
	kept := struct {
		Model string
		Texts map[string]report.Evaluation
	}{}
	path := x.path("scores-" + folder(name) + ".json")
	if err := readJSON(path, &kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	if print := model.Fingerprint(); kept.Model != print || kept.Texts == nil {
		kept.Model, kept.Texts = print, map[string]report.Evaluation{}
	}
	texts := append([]evalText{{Name: "held-out"}}, x.Eval...)
	for _, t := range texts {
		key := t.Name + "=" + t.Path
		if _, ok := kept.Texts[key]; !ok {
			o := trainers.EvaluateOptions{Model: dir, Context: x.Context, Batch: x.Batch, Device: x.Device, Stage: "score " + name + " on " + t.Name}
			if t.Path == "" {
				o.Dataset = x.dataset
			} else {
				o.Text, o.Tokenizer = t.Path, x.tokenizer
			}
			s, err := trainers.Evaluate(ctx, o)
			if err != nil {
				return m, err
			}
			kept.Texts[key] = report.Evaluation{Tokens: s.Tokens, Nats: s.Nats, Perplexity: s.Perplexity()}
			if err := writeJSON(path, kept); err != nil {
				return m, err
			}
		}
		m.Scores = append(m.Scores, kept.Texts[key])
	}
	return m, nil
}

// trained is how many tokens a run's folder was trained on; 0 for none.
func trained(dir string) (int64, error) {
	latest, ok, err := checkpoint.Latest(dir)
	if err != nil || !ok {
		return 0, err
	}
	_, _, t, err := checkpoint.LoadTraining(latest)
	if err != nil {
		return 0, err
	}
	return t.Tokens, nil
}

// notes say what the table shows.
func (x *experiment) notes(r report.Run) []string {
	way := "streamed through Kafka"
	if x.Source == trainers.FromInline {
		way = "computed beside the student"
	}
	list := []string{fmt.Sprintf("The students were given the same time, %.0f s each: pre-trained by next-token cross entropy from random weights; "+
		"distilled layer after layer by mean squared error, the lower blocks frozen, from the teacher's embeddings and final norm (the teacher's forward passes, %s, are within the time); "+
		"and distilled so for half of the time, then trained by cross entropy (CE) for the other half.", x.StudentSeconds, way)}
	order := slices.Clone(r.Models)
	slices.SortStableFunc(order, func(a, b report.Model) int { return cmp.Compare(a.Scores[0].Perplexity, b.Scores[0].Perplexity) })
	var names []string
	for _, m := range order {
		names = append(names, fmt.Sprintf("%s (%.1f)", m.Name, m.Scores[0].Perplexity))
	}
	list = append(list, "From best to worst on the held-out text: "+strings.Join(names, ", ")+". "+
		"In the paper, at five hours each, the teacher had 51.4 on WikiText and 35.3 on OpenWebText, Hyena pre-trained 230 and 64.9, distilled 155.8 and 63.5, distilled and then fine-tuned 121.2 and 49.6.")
	if order[0].Name != r.Models[0].Name && x.Teacher == "" {
		list = append(list, "A student that is better than its teacher says that the teacher's own training was short: what the student took from it was a start, not a bound.")
	}
	return list
}

func (x *experiment) settings(m *tokenset.Manifest) []report.Setting {
	train, held := m.Splits[tokenset.Train], m.Splits[tokenset.Validation]
	device := x.Device
	if e, err := gpu.Open(x.Device); err == nil {
		device = e.Device()
		e.Close()
	}
	return []report.Setting{
		{Name: "text", Value: strings.Join(x.Input, ", ")},
		{Name: "training tokens", Value: fmt.Sprintf("%d in %d sequences of %d, from %d documents", train.Tokens, train.Rows, m.SeqLen, train.Documents)},
		{Name: "held-out tokens", Value: fmt.Sprintf("%d in %d sequences, from %d documents", held.Tokens, held.Rows, held.Documents)},
		{Name: "vocabulary", Value: fmt.Sprint(m.Tokenizer.Vocab)},
		{Name: "steps", Value: fmt.Sprintf("teacher %d; pre-trained %d; distilled %d a layer; distilled %d a layer, then CE %d", x.plan.Teacher, x.plan.Pretrain, x.plan.Distill, x.plan.Half, x.plan.Finetune)},
		{Name: "batch", Value: fmt.Sprintf("%d sequences of %d tokens", x.Batch, x.Context)},
		{Name: "peak learning rate", Value: fmt.Sprint(x.Rate)},
		{Name: "seed", Value: fmt.Sprint(x.Seed)},
		{Name: "device", Value: device + ", " + x.Precision},
		{Name: "built with", Value: runtime.Version()},
	}
}

// curves are the losses of all stages, those of one kind in one figure.
func (x *experiment) curves() ([]report.Curve, error) {
	ce := report.Curve{Title: "Cross entropy", Loss: "nats a token, training batches"}
	mse := report.Curve{Title: "Layer MSE", Loss: "mean squared error, training batches"}
	for _, name := range []string{nameTeacher, namePretrained, nameFinetuned, nameDistilled, nameHalf} {
		metrics, err := report.ReadMetrics(x.path(folder(name), "metrics.jsonl"))
		if errors.Is(err, fs.ErrNotExist) { // a teacher that was given
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range metrics {
			c, line := &ce, name
			if m.Layer >= 0 {
				c, line = &mse, fmt.Sprintf("%s, layer %d", name, m.Layer)
			}
			if n := len(c.Lines); n == 0 || c.Lines[n-1].Name != line {
				c.Lines = append(c.Lines, report.Line{Name: line})
			}
			l := &c.Lines[len(c.Lines)-1]
			l.Steps, l.Loss = append(l.Steps, m.Step), append(l.Loss, math.Max(m.Loss, 0))
		}
	}
	return []report.Curve{ce, mse}, nil
}
