package matrix_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/bench/matrix"
)

const criteria = `# Requirements

## R1 First
- R1.1 The first criterion.
- R1.2 The second one, which is long
  enough for a second line.

Some words between.

## N Figures
- N1 A figure | with a bar.
`

// mark is put together so that the tool does not take the examples below for claims of this file.
const mark = "// Veri" + "fies:"

// project writes the files of a project and returns its root.
func project(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "docs"), 0o755))
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(content, "MARK", mark)), 0o600))
	}
	return root
}

const shownTests = `package a

// TestOne does a thing.
// MARK R1.1
func TestOne(t *testing.T) {
	// MARK N1, R1.1
	t.Run("a part", func(t *testing.T) {})
	for name := range all {
		// MARK N1
		t.Run(name, func(t *testing.T) {})
	}
}

// MARK R1.1
func FuzzTwo(f *testing.F) {}
`

func TestTableListsTestsAndWhatIsMissing(t *testing.T) {
	root := project(t, map[string]string{
		matrix.CriteriaFile:      criteria,
		"pkg/a_test.go":          strings.ReplaceAll(shownTests, "// MARK", "MARK"),
		"pkg/testdata/x_test.go": "not even Go",
		".hidden/x_test.go":      "not even Go",
		"pkg/a.go":               "not looked at",
	})
	var out strings.Builder
	require.NoError(t, matrix.Run(root, true, &out))
	assert.Equal(t, "not yet shown: R1.2 The second one, which is long enough for a second line.\n2 of 3 criteria are shown by a test\n", out.String())

	table, err := os.ReadFile(filepath.Join(root, matrix.TableFile))
	require.NoError(t, err)
	assert.Contains(t, string(table), "\n## R1 First\n\n| criterion | text | tests |\n| --- | --- | --- |\n"+
		"| R1.1 | The first criterion. | `pkg/a_test.go: FuzzTwo`<br>`pkg/a_test.go: TestOne`<br>`pkg/a_test.go: TestOne/a_part` |\n"+
		"| R1.2 | The second one, which is long enough for a second line. | not yet shown |\n")
	assert.Contains(t, string(table), "| N1 | A figure \\| with a bar. | `pkg/a_test.go: TestOne/*`<br>`pkg/a_test.go: TestOne/a_part` |\n")

	require.NoError(t, matrix.Run(root, false, io.Discard), "what was just written is up to date")
	require.ErrorContains(t, matrix.Make(matrix.Options{Root: root, Strict: true, Out: io.Discard}), "1 criteria are not shown")
}

func TestCheckFailsOnAnOldTable(t *testing.T) {
	root := project(t, map[string]string{matrix.CriteriaFile: criteria})
	require.ErrorContains(t, matrix.Run(root, false, io.Discard), "out of date")
	require.NoError(t, os.WriteFile(filepath.Join(root, matrix.TableFile), []byte("old"), 0o600))
	require.ErrorContains(t, matrix.Run(root, false, io.Discard), "out of date")
}

func TestWrongClaimsAreErrors(t *testing.T) {
	for name, c := range map[string]struct{ test, want string }{
		"unknown criterion": {"MARK R9.9\nfunc TestX(t *testing.T) {}", "a_test.go:3: TestX says that it verifies R9.9, which is no criterion"},
		"not an id":         {"MARK R1.1 and more\nfunc TestX(t *testing.T) {}", `a_test.go:3: "R1.1 and more" is not the id`},
		"nothing named":     {"MARK\nfunc TestX(t *testing.T) {}", `a_test.go:3: "" is not the id`},
		"line between":      {"MARK R1.1\n\nfunc TestX(t *testing.T) {}", "a_test.go:3: this comment is not directly above a test"},
		"above a helper":    {"MARK R1.1\nfunc helper() {}", "not directly above a test"},
		"above a benchmark": {"MARK R1.1\nfunc BenchmarkX(b *testing.B) {}", "not directly above a test"},
		"not Go":            {"MARK R1.1\nfunc {", "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			root := project(t, map[string]string{matrix.CriteriaFile: criteria, "a_test.go": "package a\n\n" + c.test + "\n"})
			require.ErrorContains(t, matrix.Run(root, true, io.Discard), c.want)
			require.NoFileExists(t, filepath.Join(root, matrix.TableFile))
		})
	}
}

func TestCriteriaHaveToBeThere(t *testing.T) {
	require.ErrorIs(t, matrix.Run(t.TempDir(), true, io.Discard), os.ErrNotExist)
	require.ErrorContains(t, matrix.Run(project(t, map[string]string{matrix.CriteriaFile: "# Nothing\n"}), true, io.Discard), "no criteria")
	twice := "- R1.1 a\n- R1.1 b\n"
	require.ErrorContains(t, matrix.Run(project(t, map[string]string{matrix.CriteriaFile: twice}), true, io.Discard), "R1.1 stands there twice")
}

func TestLongTextsAreShortened(t *testing.T) {
	long := "- R1.1 " + strings.Repeat("word ", 17) + "`some code that is cut` and more\n"
	root := project(t, map[string]string{matrix.CriteriaFile: long})
	require.NoError(t, matrix.Run(root, true, io.Discard))
	table, err := os.ReadFile(filepath.Join(root, matrix.TableFile))
	require.NoError(t, err)
	assert.Contains(t, string(table), "word `some code` … | not yet shown |")
}

func TestProject(t *testing.T) {
	criteria, err := matrix.Criteria(filepath.Join("../..", matrix.CriteriaFile))
	require.NoError(t, err)
	references, err := matrix.Scan("../..")
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, c := range criteria {
		known[c.ID] = true
	}
	for _, r := range references {
		assert.True(t, known[r.ID], "%s:%d names %s, which is no criterion", r.Path, r.Line, r.ID)
	}
}
