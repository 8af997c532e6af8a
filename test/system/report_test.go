package system

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// hostile is what would be a script, an image or the end of an element, if it were not
// escaped where it stands.
const hostile = `</pre></code>"'><script>document.title='owned'</script><img src=http://127.0.0.1:1/x onerror="document.title='owned'">{{.}}`

// viewed is a page in a browser, and what came of it.
type viewed struct {
	context.Context
	mu       sync.Mutex
	loaded   []string // URLs
	troubles []string // errors, warnings, exceptions and dialogs
}

// newBrowser starts a real browser, which ends with the test.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(rig.Program(t, "chromium", "chromium")), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.WSURLReadTimeout(hang)) // a busy machine starts it slowly
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// view opens a file in a tab that is as wide as that.
func view(browser context.Context, t *testing.T, file string, width int64) *viewed {
	t.Helper()
	v := &viewed{}
	var cancel context.CancelFunc
	v.Context, cancel = chromedp.NewContext(browser)
	t.Cleanup(cancel)
	if err := chromedp.Listen(v, v.note); err != nil {
		t.Fatal(err)
	}
	tell(t, v, network.Enable, network.EnableParams{})
	tell(t, v, log.Enable, cdp.Empty{})
	tell(t, v, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 800, DeviceScaleFactor: 1, Mobile: width < 500})
	v.run(t, chromedp.Navigate("file://"+file))
	return v
}

func (v *viewed) note(event any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		v.loaded = append(v.loaded, e.Request.URL)
	case *log.EventEntryAdded:
		v.troubles = append(v.troubles, e.Entry.Text)
	case *runtime.EventConsoleAPICalled:
		v.troubles = append(v.troubles, "console: "+string(e.Type))
	case *runtime.EventExceptionThrown:
		v.troubles = append(v.troubles, e.ExceptionDetails.Text)
	case *page.EventJavascriptDialogOpening:
		v.troubles = append(v.troubles, "dialog: "+e.Message)
	}
}

func (v *viewed) run(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(v, steps...); err != nil {
		t.Fatal(err)
	}
}

// tell sends a command of the browser's own protocol.
func tell[P, R any](t *testing.T, v *viewed, c cdp.Command[P, R], params P) {
	t.Helper()
	if _, err := chromedp.Call(v, c, params); err != nil {
		t.Fatal(err)
	}
}

// value is that of an expression in the page.
func value[T any](t *testing.T, v *viewed, expression string) T {
	t.Helper()
	got, err := chromedp.Run(v, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// faint finds texts that are hard to read: small ones, and ones whose colour is too
// near that of what is behind them (WCAG 2.2, 1.4.3).
const faint = `(() => {
	const channels = c => c.match(/[\d.]+/g).map(Number);
	const light = c => { const [r, g, b] = channels(c).map(x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
	const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if ((channels(c)[3] ?? 1) > 0) return c } return 'rgb(255, 255, 255)' };
	const bad = [];
	const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; n = texts.nextNode();) {
		const e = n.parentElement, style = getComputedStyle(e);
		if (!n.data.trim() || !e.getClientRects().length || e.closest('svg')) continue;
		const [a, b] = [light(style.color), light(behind(e))].sort((x, y) => y - x);
		if ((a + .05) / (b + .05) < 4.5 || parseFloat(style.fontSize) < 12) bad.push(style.fontSize + ' ' + style.color + ' on ' + behind(e) + ': ' + n.data.trim());
	}
	return bad;
})()`

// check holds what is true of every page, on a wide screen and on a phone, in light and in the dark.
func (v *viewed) check(t *testing.T) {
	t.Helper()
	pages := map[string]bool{}
	for _, scheme := range []string{"light", "dark"} {
		tell(t, v, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		if bad := value[[]string](t, v, faint); len(bad) > 0 {
			t.Errorf("hard to read, %s: %q", scheme, bad)
		}
		pages[value[string](t, v, `getComputedStyle(document.body).backgroundColor`)] = true
	}
	if len(pages) != 2 {
		t.Errorf("in light and in the dark the page is %v", pages)
	}
	if over := value[int](t, v, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
		t.Errorf("the page is %d pixels wider than the screen", over)
	}
	for what, count := range map[string]string{
		"scripts":               `document.scripts.length`,
		"handlers":              `[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length`,
		"images and frames":     `document.querySelectorAll('img, iframe, object, embed, form').length`,
		"addresses":             `[...document.querySelectorAll('[src], [href]')].filter(e => !/^(#|data:,$)/.test(e.getAttribute('src') || e.getAttribute('href'))).length`,
		"pictures without text": `document.querySelectorAll('svg:not([aria-hidden]):not([aria-label])').length`,
		"cells without heading": `document.querySelectorAll('table:not(:has(caption)), th:not([scope])').length`,
		"bars without length":   `[...document.querySelectorAll('svg.bar rect')].filter(r => r.getBoundingClientRect().width < 1).length`,
		"owned":                 `document.title == 'owned' ? 1 : 0`,
		"doubled ids":           `document.querySelectorAll('[id]').length - new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size`,
	} {
		if n := value[int](t, v, count); n != 0 {
			t.Errorf("%s: %d", what, n)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, url := range v.loaded {
		if !strings.HasPrefix(url, "file://") && url != "data:," {
			t.Errorf("the page asks for %s", url)
		}
	}
	if len(v.loaded) == 0 || len(v.troubles) > 0 {
		t.Errorf("the browser loaded %q and says %q", v.loaded, v.troubles)
	}
}

// The page about a node and that about a task hold what the journal knows, whatever
// strangers wrote there, and are good to read in a real browser; also while a run
// holds the journal.
func TestReport(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image, other := w.Image(t, "report", rig.Spec{}), w.Image(t, "other", rig.Spec{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, hostile, http.StatusNotFound) }))
	defer server.Close()
	in := w.Write(t, "in", strings.Repeat("x", 3000))
	w.MustRun(t, 0, tes.Task{
		ID: "sort", Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(image.Tag, "sleep 1; cp /data/in /data/out; echo sorted")},
		Inputs: []tes.Input{{URL: in, Path: "/data/in"}}, Outputs: []tes.Output{{URL: w.Dir + "/out", Path: "/data/out"}},
	})
	w.MustRun(t, 1, tes.Task{ID: hostile, Executors: []tes.Executor{{Image: image.Tag, Command: []string{"sh", "-c", "echo \"$0\"; echo \"$0\" >&2; exit 7", hostile}}}})
	w.MustRun(t, 3, tes.Task{ID: "missing", Executors: []tes.Executor{Sh(other.Tag, "true")}, Inputs: []tes.Input{{URL: server.URL + "/in", Path: "/in"}}})
	waiting := w.Start(t, tes.Task{ID: "waiting", Executors: []tes.Executor{Sh(image.Tag, "sleep 600")}})
	defer func() {
		_ = waiting.Process.Kill() // it runs; the world's end rolls it back
		_ = waiting.Wait()
	}()
	until(t, "the executor", func() bool {
		return strings.Contains(w.Deckhand(t, "journal", "inspect", "waiting").Stdout, "will executor 0")
	})

	file := filepath.Join(w.Dir, "node.html")
	if r := w.Deckhand(t, "journal", "report", "-o", file); r.Code != 0 || r.Stdout != "" {
		t.Fatalf("%+v", r)
	}
	browser := newBrowser(t)
	wide := view(browser, t, file, 1280)
	if rows := value[[]string](t, wide, `[...document.querySelectorAll('tbody tr')].map(r => [...r.querySelectorAll('th a, td:nth-child(2)')].map(e => e.textContent).join(': '))`); !slices.Equal(rows,
		[]string{"waiting: Run, running", "missing: SystemError", hostile + ": ExecutorError", "sort: Complete"}) {
		t.Errorf("the timeline shows %q", rows)
	}
	if bars := value[[]string](t, wide, `[...document.querySelectorAll('tbody svg')].map(s => [...s.querySelectorAll('rect')].map(r => r.getAttribute('class').slice(5)).join(' '))`); !slices.Equal(bars,
		[]string{"Accepted Scrub ImageCheck Download Run", "Accepted Scrub ImageCheck Download RollingBack", "Accepted Scrub ImageCheck Download Run Upload", "Accepted Scrub ImageCheck Download Run Upload"}) {
		t.Errorf("the bars are %q", bars)
	}
	text := value[string](t, wide, `document.body.innerText`)
	for _, words := range []string{"1 file, 2.93KiB", "exit code 7", "exit code 3", "there is no such object", "pulled by deckhand", "image " + image.Tag + ",", "another image was wanted"} {
		if !strings.Contains(text, words) {
			t.Errorf("the page does not say %q:\n%s", words, text)
		}
	}
	// Five or six states of each task, and one corner more.
	if points := value[[]int](t, wide, `[...document.querySelectorAll('main > .card > svg.disk polyline')].map(l => l.getBoundingClientRect().width > 500 ? l.points.numberOfItems : 0)`); len(points) == 0 || points[0] < 25 {
		t.Errorf("the lines of the disks have %d points", points)
	}
	if label := value[string](t, wide, `document.querySelector('svg.disk').ariaLabel`); !strings.HasPrefix(label, "Used of "+w.Root+": ") {
		t.Errorf("the first disk is %q", label)
	}
	// By keyboard: past the header, to the first task.
	wide.run(t, chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	eventually(t, "the way to the task", func() bool { return value[string](t, wide, `location.hash`) != "" })
	if at := value[string](t, wide, `location.hash + ' ' + document.querySelector(location.hash + ' h3').textContent`); at != "#task-0 waiting" {
		t.Errorf("Tab, Tab and Enter lead to %s", at)
	}
	wide.check(t)
	view(browser, t, file, 360).check(t)

	one := w.Deckhand(t, "journal", "report", hostile)
	if one.Code != 0 {
		t.Fatalf("%+v", one)
	}
	w.Write(t, "task.html", one.Stdout)
	phone := view(browser, t, filepath.Join(w.Dir, "task.html"), 360)
	if said := value[[]string](t, phone, `[...document.querySelectorAll('pre')].map(e => e.textContent)`); !slices.Equal(said, []string{hostile + "\n", hostile + "\n"}) {
		t.Errorf("the logs are %q", said)
	}
	records := strings.Count(w.Deckhand(t, "journal", "inspect", hostile).Stdout, "\n")
	if shown := value[int](t, phone, `document.querySelectorAll('.records li').length`); shown != records {
		t.Errorf("%d records are shown, there are %d", shown, records)
	}
	if lines := value[int](t, phone, `document.querySelectorAll('article svg.disk').length`); lines == 0 {
		t.Error("the page about a task does not show the disk")
	}
	phone.check(t)
	tell(t, phone, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
	if cut := value[int](t, phone, `[...document.querySelectorAll('pre')].filter(e => getComputedStyle(e).maxHeight != 'none').length`); cut != 0 {
		t.Errorf("on paper %d logs are cut", cut)
	}
}
