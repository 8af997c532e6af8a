// Package unknown calls a package that nobody has judged.
package unknown

import "net/smtp"

func work() error { return smtp.SendMail("", nil, "", nil, nil) }
