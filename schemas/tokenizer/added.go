package tokenizer

import "bytes"

// An added token is text that becomes one id before the split sees it.
type added struct {
	content []byte
	id      int32
}

// A matcher finds added tokens in text: the leftmost, of those the longest.
type matcher struct {
	prefix []byte // what every token begins with
	root   *node
}

// A node is one of a trie over the bytes of the tokens.
type node struct {
	next map[byte]*node
	id   int32 // of the token that ends here, or -1
}

func newNode() *node { return &node{next: map[byte]*node{}, id: -1} }

// newMatcher returns nil for no tokens.
func newMatcher(tokens []added) *matcher {
	if len(tokens) == 0 {
		return nil
	}
	m := &matcher{prefix: tokens[0].content, root: newNode()}
	for _, t := range tokens {
		n := 0
		for n < min(len(m.prefix), len(t.content)) && m.prefix[n] == t.content[n] {
			n++
		}
		m.prefix = m.prefix[:n]
		at := m.root
		for _, c := range t.content {
			if at.next[c] == nil {
				at.next[c] = newNode()
			}
			at = at.next[c]
		}
		at.id = t.id
	}
	return m
}

// find is the first token in s from position from on: s[start:end] is id. ok
// is false when there is none.
func (m *matcher) find(s []byte, from int) (start, end int, id int32, ok bool) {
	for i := from; i < len(s); i++ {
		if len(m.prefix) > 0 { // text is skipped at the speed of bytes.Index
			n := bytes.Index(s[i:], m.prefix)
			if n < 0 {
				return 0, 0, 0, false
			}
			i += n
		}
		at := m.root
		for j := i; j < len(s); {
			if at = at.next[s[j]]; at == nil {
				break
			}
			j++
			if at.id >= 0 {
				end, id, ok = j, at.id, true
			}
		}
		if ok {
			return i, end, id, true
		}
	}
	return 0, 0, 0, false
}
