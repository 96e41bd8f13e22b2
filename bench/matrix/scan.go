package matrix

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Scan returns what the tests below root say that they verify, in the order of the files. A comment that is not directly
// above a test, or that names something other than ids, is an error, as it would silently show nothing.
func Scan(root string) ([]Reference, error) {
	var references []Reference
	var problems []error
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path != root && skipped(entry.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(entry.Name(), "_test.go") {
			return nil
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		found, err := scanFile(path, filepath.ToSlash(relative))
		references = append(references, found...)
		problems = append(problems, err)
		return nil
	})
	return references, errors.Join(append(problems, err)...)
}

// skipped are the folders that the go command does not look into either.
func skipped(name string) bool {
	return name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")
}

// claim is one comment line that names criteria.
type claim struct {
	line  int // of the comment
	below int // the line directly under the comment's group
	list  string
}

func scanFile(path, name string) ([]Reference, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	claims := claims(files, file)
	if len(claims) == 0 {
		return nil, nil
	}
	tests := testsByLine(files, file)
	var references []Reference
	var problems []error
	for _, c := range claims {
		test, ok := tests[c.below]
		if !ok {
			problems = append(problems, fmt.Errorf("%s:%d: this comment is not directly above a test", name, c.line))
			continue
		}
		ids, err := split(c.list)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", name, c.line, err))
			continue
		}
		for _, id := range ids {
			references = append(references, Reference{ID: id, Path: name, Line: c.line, Test: test})
		}
	}
	return references, errors.Join(problems...)
}

func claims(files *token.FileSet, file *ast.File) []claim {
	pattern := regexp.MustCompile(`^//\s*Verifies:(.*)$`)
	var found []claim
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if match := pattern.FindStringSubmatch(comment.Text); match != nil {
				found = append(found, claim{
					line:  files.Position(comment.Pos()).Line,
					below: files.Position(group.End()).Line + 1,
					list:  match[1],
				})
			}
		}
	}
	return found
}

func split(list string) ([]string, error) {
	pattern := regexp.MustCompile(`^(` + idPattern + `)$`)
	var ids []string
	for part := range strings.SplitSeq(list, ",") {
		id := strings.TrimSpace(part)
		if !pattern.MatchString(id) {
			return nil, fmt.Errorf("%q is not the id of a criterion, such as R1.7 or N6", id)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// testsByLine maps the line where a test function or a t.Run begins to its name. Benchmarks show nothing: no test run
// includes them.
func testsByLine(files *token.FileSet, file *ast.File) map[int]string {
	tests := make(map[int]string)
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok || function.Body == nil || function.Recv != nil || !isTest(function.Name.Name) {
			continue
		}
		name := function.Name.Name
		tests[files.Position(function.Pos()).Line] = name
		ast.Inspect(function.Body, func(node ast.Node) bool {
			if statement, ok := node.(*ast.ExprStmt); ok {
				if sub, ok := subtest(statement.X); ok {
					tests[files.Position(statement.Pos()).Line] = name + "/" + sub
				}
			}
			return true
		})
	}
	return tests
}

func isTest(name string) bool {
	return strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") || strings.HasPrefix(name, "Example")
}

// subtest returns the name of a call of Run, as `go test` shows it; "*" when it is no literal.
func subtest(expression ast.Expr) (string, bool) {
	call, ok := expression.(*ast.CallExpr)
	if !ok || len(call.Args) != 2 {
		return "", false
	}
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != "Run" {
		return "", false
	}
	literal, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "*", true
	}
	name, err := strconv.Unquote(literal.Value)
	return strings.ReplaceAll(name, " ", "_"), err == nil
}
