package report

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/scavenge/scavenge/schemas/durable"
)

// Run is what a whole experiment found.
type Run struct {
	Title    string    `json:"title"`
	Notes    []string  `json:"notes"`    // what the numbers mean, a paragraph each
	Sets     []string  `json:"sets"`     // names of the evaluation texts
	Models   []Model   `json:"models"`   // rows of the table
	Settings []Setting `json:"settings"` // what the run was, in reading order
	Curves   []Curve   `json:"-"`
}

// Model is one row of the table.
type Model struct {
	Name       string       `json:"name"`
	Parameters int          `json:"parameters"`
	Seconds    float64      `json:"seconds"` // wall time of its training stages
	Tokens     int64        `json:"tokens"`  // trained on, repeats counted
	Scores     []Evaluation `json:"scores"`  // one for each of Run.Sets
}

// Evaluation is a perplexity and what it is made of: exp(Nats / Tokens).
type Evaluation struct {
	Tokens     int64   `json:"tokens"` // scored
	Nats       float64 `json:"nats"`   // their −log p, summed
	Perplexity float64 `json:"perplexity"`
}

// Setting is a name and a value for people to read.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Table is the run's result as aligned text: perplexities and, in brackets,
// their ratio to the first row's, the teacher's.
func (r Run) Table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\ttrained on\tin\t")
	for _, s := range r.Sets {
		fmt.Fprintf(w, "%s\t\t", s)
	}
	fmt.Fprintln(w)
	for _, m := range r.Models {
		fmt.Fprintf(w, "%s\t%s\t%s\t", m.Name, m.TokensText(), m.SecondsText())
		for i, s := range m.Scores {
			fmt.Fprintf(w, "%.2f\t(%s)\t", s.Perplexity, r.Ratio(i, s))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return b.String()
}

// TokensText and SecondsText are what the table shows; a model that was
// loaded rather than trained here has neither.
func (m Model) TokensText() string {
	if m.Tokens == 0 {
		return "-"
	}
	return Count(float64(m.Tokens)) + " tokens"
}

func (m Model) SecondsText() string {
	if m.Seconds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f s", m.Seconds)
}

// Ratio is a score over the teacher's on set i.
func (r Run) Ratio(i int, s Evaluation) string {
	return fmt.Sprintf("%.2f×", s.Perplexity/r.Models[0].Scores[i].Perplexity)
}

// Save writes report.json, report.html and the curves as SVG files into a
// folder.
func (r Run) Save(dir string) error {
	for i, m := range r.Models {
		if len(m.Scores) != len(r.Sets) {
			return fmt.Errorf("report: model %d (%s) has %d scores for %d sets", i, m.Name, len(m.Scores), len(r.Sets))
		}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var page strings.Builder
	if err := r.html(&page); err != nil {
		return err
	}
	files := map[string][]byte{"report.json": append(data, '\n'), "report.html": []byte(page.String())}
	for _, c := range r.Curves {
		if files[c.File()], err = c.SVG(); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := durable.WriteFile(filepath.Join(dir, name), func(w io.Writer) error {
			_, err := w.Write(content)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
small { color: #666 } figure { margin: 1.5rem 0 } svg { max-width: 100%; height: auto }
</style>
<h1>{{.Title}}</h1>
<table>
<tr><th>model<th>parameters<th>trained on<th>in{{range .Sets}}<th>{{.}}{{end}}</tr>
{{- range .Models}}
<tr><td>{{.Name}}<td>{{.Parameters}}<td>{{.TokensText}}<td>{{.SecondsText}}{{range $i, $s := .Scores}}<td>{{printf "%.2f" $s.Perplexity}} <small>{{$.Ratio $i $s}}</small>{{end}}</tr>
{{- end}}
</table>
<p><small>Perplexity per token, and its ratio to the teacher's; lower is better.</small></p>
{{- range .Notes}}
<p>{{.}}</p>
{{- end}}
{{- range .Figures}}
<figure>{{.}}</figure>
{{- end}}
<h2>Settings</h2>
<table>
{{- range .Settings}}
<tr><td>{{.Name}}<td>{{.Value}}</tr>
{{- end}}
</table>
</html>
`))

func (r Run) html(w *strings.Builder) error {
	var figures []template.HTML
	for _, c := range r.Curves {
		svg, err := c.SVG()
		if err != nil {
			return err
		}
		// the file's own prologue has no place inside a page
		_, body, ok := strings.Cut(string(svg), "<svg")
		if !ok {
			return fmt.Errorf("report: curve %q made no picture", c.Title)
		}
		figures = append(figures, template.HTML("<svg"+body))
	}
	return page.Execute(w, struct {
		Run
		Figures []template.HTML
	}{r, figures})
}
