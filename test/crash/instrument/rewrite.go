package instrument

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"strconv"
	"strings"

	"golang.org/x/tools/go/packages"
)

// runtime is what instrumented files import, under a name that none of them uses.
const runtime, runtimeName = module + "/test/crash/point", "crashpoint"

// rewriter puts points into one file.
type rewriter struct {
	pkg  *packages.Package
	file *ast.File

	function string // that is being looked at
	skipped  map[ast.Node]bool
	numbers  map[string]int    // of the calls of a name in one function
	imports  map[string]string // name, by path, of what the results' types need besides
	edits    []edit
	effects  []string
	failed   []error
}

func (w *rewriter) fail(at ast.Node, format string, args ...any) {
	w.failed = append(w.failed, fmt.Errorf("%s: %s", w.pkg.Fset.Position(at.Pos()), fmt.Sprintf(format, args...)))
}

func (w *rewriter) offset(p token.Pos) int { return w.pkg.Fset.Position(p).Offset }

func (w *rewriter) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncDecl:
		w.function = functionName(n)
	case *ast.GenDecl:
		if w.function == "" {
			w.function = "init"
		}
	case *ast.DeferStmt:
		w.refuse(n.Call, "deferred")
	case *ast.GoStmt:
		w.refuse(n.Call, "begun as a goroutine")
	case *ast.CallExpr:
		w.call(n)
	case *ast.Ident:
		w.value(n)
	}
	return true
}

// refuse takes note of a call that cannot be put between two points.
func (w *rewriter) refuse(call *ast.CallExpr, how string) {
	if name, is := w.effectOf(call); is {
		w.fail(call, "the effect %s is %s; put it into a function literal", name, how)
	}
}

// value refuses an effect that is no call: what calls it is not known.
func (w *rewriter) value(id *ast.Ident) {
	f, ok := w.pkg.TypesInfo.Uses[id].(*types.Func)
	if !ok || w.skipped[id] {
		return
	}
	if name, is := w.classify(id, f, nil); is && !values[relative(w.pkg.PkgPath)+"/"+name] {
		w.fail(id, "the effect %s is used as a value; put it into a function literal", name)
	}
}

// call puts a call between two points when it is an effect.
func (w *rewriter) call(call *ast.CallExpr) {
	for _, id := range named(call.Fun) {
		if w.skipped == nil {
			w.skipped = map[ast.Node]bool{}
		}
		w.skipped[id] = true
	}
	callee, is := w.effectOf(call)
	if !is {
		return
	}
	key := w.function + "/" + callee
	w.numbers[key]++
	if n := w.numbers[key]; n > 1 {
		key += "~" + strconv.Itoa(n)
	}
	name := strconv.Quote(relative(w.pkg.PkgPath) + "." + key)
	w.effects = append(w.effects, relative(w.pkg.PkgPath)+"."+key)

	w.need(runtime, runtimeName)
	results, ok := w.results(call)
	if !ok {
		return
	}
	ret := "return "
	if len(results) == 0 {
		ret = ""
	}
	from, to := w.offset(call.Pos()), w.offset(call.End())
	w.edits = append(w.edits,
		edit{at: from, span: to - from, text: fmt.Sprintf("%s.R%d(%s, func() (%s) { %s", runtimeName, len(results), name, strings.Join(results, ", "), ret)},
		edit{at: to, span: to - from, end: true, text: " })"},
	)
	for _, arg := range call.Args {
		if f, ok := arg.(*ast.FuncLit); ok {
			w.edits = append(w.edits, edit{at: w.offset(f.Body.Lbrace) + 1, text: fmt.Sprintf(" %s.Pass(%s + %s.Called);", runtimeName, name, runtimeName)})
		}
	}
}

// results are the types of a call's results, as this file writes them.
func (w *rewriter) results(call *ast.CallExpr) ([]string, bool) {
	t := w.pkg.TypesInfo.TypeOf(call)
	tuple, ok := t.(*types.Tuple)
	if !ok {
		tuple = types.NewTuple(types.NewVar(token.NoPos, nil, "", t))
	}
	if tuple.Len() > 3 {
		w.fail(call, "an effect with %d results", tuple.Len())
		return nil, false
	}
	var list []string
	for v := range tuple.Variables() {
		list = append(list, types.TypeString(v.Type(), w.qualify))
	}
	return list, true
}

// qualify is the name under which this file knows a package.
func (w *rewriter) qualify(p *types.Package) string {
	if p == w.pkg.Types {
		return ""
	}
	for _, spec := range w.file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil || path != p.Path() {
			continue
		}
		if spec.Name == nil {
			return p.Name()
		}
		if spec.Name.Name != "_" && spec.Name.Name != "." {
			return spec.Name.Name
		}
	}
	name := runtimeName + strings.NewReplacer("/", "_", ".", "_", "-", "_").Replace(p.Path())
	w.need(p.Path(), name)
	return name
}

// need imports a package, in the line of the package clause: the lines of what
// follows stay the same.
func (w *rewriter) need(path, name string) {
	if w.imports == nil {
		w.imports = map[string]string{}
	}
	if w.imports[path] == "" {
		w.imports[path] = name
		w.edits = append(w.edits, edit{at: w.offset(w.file.Name.End()), text: fmt.Sprintf("; import %s %q", name, path)})
	}
}

// functionName is how a function is written: name, T.name or (*T).name.
func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return f.Name.Name
	}
	recv := types.ExprString(f.Recv.List[0].Type)
	if strings.HasPrefix(recv, "*") {
		recv = "(" + recv + ")"
	}
	return recv + "." + f.Name.Name
}

// named are the identifiers that say what is called.
func named(fun ast.Expr) []*ast.Ident {
	switch f := ast.Unparen(fun).(type) {
	case *ast.Ident:
		return []*ast.Ident{f}
	case *ast.SelectorExpr:
		return []*ast.Ident{f.Sel}
	case *ast.IndexExpr:
		return named(f.X)
	case *ast.IndexListExpr:
		return named(f.X)
	}
	return nil
}
